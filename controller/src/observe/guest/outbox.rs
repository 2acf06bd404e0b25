//! What waits to be told of one guest.
//!
//! In: views and counts as they come. Out: updates, as fast as the receiver takes them. However
//! slow it is, at most one update waits: a later view replaces an earlier one.

use std::{
    future,
    time::{Duration, Instant},
};

use api::types::Id;
use tokio::sync::mpsc::{self, error::TrySendError};

use super::{EventCounts, GuestMessage, GuestUpdate};
use crate::world::{Cause, GuestView};

/// The updates of one guest.
#[derive(Debug)]
pub(crate) struct Outbox {
    guest: Id,
    sink: mpsc::Sender<GuestMessage>,
    waiting: Option<Box<GuestUpdate>>,
    /// Counted, and in no update yet.
    counts: EventCounts,
    overruns: EventCounts,
    told: Option<Instant>,
}

fn add(to: &mut EventCounts, counts: EventCounts) {
    for (kind, count) in counts {
        *to.entry(kind).or_default() += count;
    }
}

impl Outbox {
    /// An outbox with nothing in it.
    pub(crate) fn new(guest: Id, sink: mpsc::Sender<GuestMessage>) -> Self {
        Outbox {
            guest,
            sink,
            waiting: None,
            counts: EventCounts::new(),
            overruns: EventCounts::new(),
            told: None,
        }
    }

    /// Adds events and overruns to whatever is told next.
    pub(crate) fn count(&mut self, counts: EventCounts, overruns: EventCounts) {
        add(&mut self.counts, counts);
        add(&mut self.overruns, overruns);
    }

    /// When counts are due that no view has taken along.
    pub(crate) fn counts_due(&self, interval: Duration) -> Option<Instant> {
        if self.counts.is_empty() && self.overruns.is_empty() {
            return None;
        }
        let told = self.told?;
        Some(told + interval)
    }

    /// Tells how the guest looks now.
    pub(crate) fn put(&mut self, view: &GuestView, cause: Cause, now: Instant) {
        let counts = std::mem::take(&mut self.counts);
        let overruns = std::mem::take(&mut self.overruns);
        self.told = Some(now);
        let view = view.clone();
        match &mut self.waiting {
            Some(waiting) => {
                waiting.view = view;
                let first = [waiting.cause.event_read, cause.event_read].into_iter().flatten();
                waiting.cause.event_read = first.min();
                add(&mut waiting.counts, counts);
                add(&mut waiting.overruns, overruns);
            }
            None => {
                let guest = self.guest.clone();
                self.waiting = Some(Box::new(GuestUpdate { guest, view, cause, counts, overruns }));
            }
        }
        if let Some(update) = self.waiting.take() {
            // A receiver that is gone wants nothing more.
            let full = self.sink.try_send(GuestMessage::Update(update));
            if let Err(TrySendError::Full(GuestMessage::Update(update))) = full {
                self.waiting = Some(update);
            }
        }
    }

    /// Hands over what waits, as soon as there is room; never returns while nothing waits. Safe to
    /// give up at any time.
    pub(crate) async fn flush(&mut self) {
        if self.waiting.is_none() {
            return future::pending().await;
        }
        let permit = self.sink.reserve().await;
        if let (Ok(permit), Some(update)) = (permit, self.waiting.take()) {
            permit.send(GuestMessage::Update(update));
        }
    }

    /// Says that the guest is no more, after all that was told before.
    pub(crate) async fn forget(mut self) {
        if self.waiting.is_some() {
            self.flush().await;
        }
        // A receiver that is gone wants nothing more.
        let _ = self.sink.send(GuestMessage::Forgotten(self.guest)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(pid: u32) -> GuestView {
        GuestView { pid: Some(pid), ..GuestView::default() }
    }

    fn update(message: Option<GuestMessage>) -> GuestUpdate {
        match message {
            Some(GuestMessage::Update(update)) => *update,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_slow_receiver_gets_the_last_view_the_first_cause_and_every_count() {
        let (sink, mut source) = mpsc::channel(1);
        let mut outbox = Outbox::new("vm1".parse().unwrap(), sink);
        let start = Instant::now();
        let at = |ms| Some(start + Duration::from_millis(ms));
        for (pid, event_read) in [(1, None), (2, at(5)), (3, at(2)), (4, None)] {
            outbox.count([("RESET", 1)].into(), [("filter_looks", 2)].into());
            outbox.put(&view(pid), Cause { event_read }, start);
        }
        assert_eq!(update(source.recv().await).view, view(1));
        outbox.flush().await;
        let merged = update(source.recv().await);
        assert_eq!(merged.view, view(4));
        assert_eq!(merged.cause, Cause { event_read: at(2) });
        assert_eq!(merged.counts, [("RESET", 3)].into());
        assert_eq!(merged.overruns, [("filter_looks", 6)].into());
    }

    #[tokio::test]
    async fn a_guest_is_forgotten_after_its_last_update() {
        let (sink, mut source) = mpsc::channel(1);
        let mut outbox = Outbox::new("vm1".parse().unwrap(), sink);
        outbox.put(&view(1), Cause { event_read: None }, Instant::now());
        outbox.put(&view(2), Cause { event_read: None }, Instant::now());
        let end = tokio::spawn(outbox.forget());
        assert_eq!(update(source.recv().await).view, view(1));
        assert_eq!(update(source.recv().await).view, view(2));
        assert_eq!(source.recv().await, Some(GuestMessage::Forgotten("vm1".parse().unwrap())));
        end.await.unwrap();
    }
}
