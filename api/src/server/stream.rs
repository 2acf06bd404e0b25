//! Events as a stream of server-sent events (WHATWG HTML, section 9.2).
//!
//! In: a feed, and where to begin. Out: a body that goes on until the client goes, falls behind, or
//! the daemon ends. It takes from the feed when the client has taken what it got, so a slow client
//! costs nothing but its place; of traffic it gets what is the latest then.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use futures_util::stream;
use tokio::sync::OwnedSemaphorePermit;

use crate::events::{Changes, Feed, LatestTraffic, Place, Read, Since, notice};

/// The media type of server-sent events.
pub(super) const EVENTS_MEDIA_TYPE: &str = "text/event-stream";

/// After so long without an event the client hears that it is still connected.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EventQuery {
    /// Where it begins.
    pub(super) since: Since,
    /// Whether it waits for more when it has read all.
    pub(super) follow: bool,
    /// Whether it is told what ports receive and send, too.
    pub(super) traffic: bool,
}

/// A client on its way through a feed.
struct Reader {
    feed: Arc<Feed>,
    changes: Changes,
    traffic: Option<LatestTraffic>,
    place: Place,
    follow: bool,
    /// What it is told first.
    first: Option<String>,
    over: bool,
    _slot: OwnedSemaphorePermit,
}

/// The answer to a client that wants events.
pub(super) fn events(feed: Arc<Feed>, query: &EventQuery, slot: OwnedSemaphorePermit) -> Response {
    let changes = feed.changes();
    let traffic = query.traffic.then(|| feed.traffic());
    let (place, first) = match feed.place(&query.since) {
        Ok(place) => {
            let id = feed.id_before(place);
            (place, notice("start", &id, "events that follow happened behind this one"))
        }
        Err(place) => {
            let id = feed.id_before(place);
            let message = "what happened since is not known any more: read again what there is";
            (place, notice("lost", &id, message))
        }
    };
    let follow = query.follow;
    let first = Some(first);
    let reader = Reader { feed, changes, traffic, place, follow, first, over: false, _slot: slot };
    let frames = stream::unfold(reader, |mut reader| async move {
        let frame = reader.next().await?;
        Some((Ok::<_, std::convert::Infallible>(frame), reader))
    });
    ([(CONTENT_TYPE, EVENTS_MEDIA_TYPE)], Body::from_stream(frames)).into_response()
}

impl Reader {
    /// What the client is told next.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first.into());
        }
        if self.over {
            return None;
        }
        loop {
            // First what is rare: events may come without a pause.
            if let Some(traffic) = self.traffic.as_mut().and_then(LatestTraffic::take) {
                return Some(traffic);
            }
            match self.feed.read(self.place) {
                Read::Frames(text, place) => {
                    self.place = place;
                    return Some(text.into());
                }
                Read::Lost(count) => {
                    self.over = true;
                    let message = format!(
                        "you read too slowly: {count} events have gone; connect again, and read \
                         again what there is"
                    );
                    return Some(notice("lost", "", &message).into());
                }
                Read::Nothing if self.feed.is_closed() => {
                    self.over = true;
                    return Some(notice("end", "", "the daemon ends").into());
                }
                Read::Nothing if !self.follow => return None,
                Read::Nothing => match tokio::time::timeout(KEEP_ALIVE, self.more()).await {
                    Ok(None) => {}
                    Ok(Some(traffic)) => return Some(traffic),
                    Err(_) => return Some(Bytes::from_static(b": still here\n\n")),
                },
            }
        }
    }

    /// Waits until there may be more to read, or for traffic: that.
    async fn more(&mut self) -> Option<Bytes> {
        let Some(traffic) = &mut self.traffic else {
            self.changes.next().await;
            return None;
        };
        tokio::select! {
            () = self.changes.next() => None,
            told = traffic.next() => Some(told),
        }
    }
}
