//! Events: what happened on a host, in order, for whoever wants to hear of it.
//!
//! In: news of the daemon. Out: the last of it, for any number of readers, each at its own pace. A
//! [`Feed`] never waits for a reader and holds no queue for one: who falls behind finds that what
//! it has not read is gone, and is told so. Beside them goes the traffic of ports, for readers that
//! ask for it: of that only the latest is kept.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write,
    sync::{PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use utoipa::ToSchema;

use crate::{resources::PortTraffic, types::Id};

/// Events that are kept.
pub const EVENTS_KEPT: usize = 4096;

/// How long a message may be, in characters.
const MESSAGE_MAX: usize = 400;

/// As much as one read gives, in bytes.
const READ_MAX: usize = 64 << 10;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Its place among all events of this run of the daemon: `18c2f0a1b3-17`.
    pub id: String,
    /// When, RFC 3339.
    pub at: String,
    /// What kind of news it is.
    #[serde(flatten)]
    pub news: News,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct News {
    /// What kind of news it is.
    pub kind: NewsKind,
    /// What it is about: `ports/web-1`.
    pub resource: String,
    /// What happened, in a word.
    pub reason: String,
    /// What happened, for people.
    pub message: String,
    /// The revision that the resource has now, where its spec changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
}

/// What ports have received and sent between two readings of the kernel's counters: the data of the
/// server-sent event `traffic`. Counts divided by the time are rates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Traffic {
    /// When it was read, RFC 3339.
    pub at: String,
    /// The time between the two readings, in milliseconds; never 0.
    pub over_ms: u64,
    /// By port. One that is not here has neither received nor sent anything, or stands on no
    /// representor.
    pub ports: BTreeMap<Id, PortTraffic>,
}

/// Kinds of news.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NewsKind {
    /// A client created, changed or deleted a resource.
    Resource,
    /// A condition has another status.
    Condition,
    /// A guest did something.
    Guest,
    /// Somebody else changed the daemon's flows; they are repaired.
    Drift,
    /// The kernel refused a flow.
    Refusal,
    /// Somebody with a role asked for a change.
    Audit,
}

impl NewsKind {
    /// In a word, as on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Resource => "resource",
            Self::Condition => "condition",
            Self::Guest => "guest",
            Self::Drift => "drift",
            Self::Refusal => "refusal",
            Self::Audit => "audit",
        }
    }
}

/// The last events.
#[derive(Debug)]
pub struct Feed {
    /// A name for this run of the daemon: its events are not those of another.
    run: String,
    ring: RwLock<Ring>,
    /// The number of the event that comes next, and whether none will.
    state: watch::Sender<State>,
    /// The latest traffic, as it goes over the wire to everybody who asks for it.
    traffic: watch::Sender<Bytes>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    next: u64,
    closed: bool,
}

/// Events as they go over the wire, with the number of the first.
#[derive(Debug, Default)]
struct Ring {
    first: u64,
    frames: VecDeque<String>,
}

/// Where a reader begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Since {
    /// With what comes.
    Now,
    /// With the first event that is kept.
    Oldest,
    /// Behind the event with this id.
    Event(String),
}

/// Where a reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(u64);

/// What there is to read.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// These server-sent events, and where the reader is then.
    Frames(String, Place),
    /// Nothing more at the moment.
    Nothing,
    /// So many events have gone that were not read.
    Lost(u64),
}

impl Default for Feed {
    fn default() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self {
            run: format!("{:x}", since.as_millis()),
            ring: RwLock::default(),
            state: watch::Sender::new(State { next: 0, closed: false }),
            traffic: watch::Sender::new(Bytes::new()),
        }
    }
}

impl Feed {
    /// Tells everybody who reads. `at` is when it happened, RFC 3339.
    pub fn tell(&self, at: String, mut news: News) {
        shorten(&mut news.message);
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        let number = ring.first + ring.frames.len() as u64;
        let event = Event { id: self.id(number + 1), at, news };
        let Ok(json) = serde_json::to_string(&event) else { return };
        let kind = event.news.kind.as_str();
        ring.frames.push_back(format!("id: {}\nevent: {kind}\ndata: {json}\n\n", event.id));
        if ring.frames.len() > EVENTS_KEPT {
            ring.frames.pop_front();
            ring.first += 1;
        }
        drop(ring);
        self.state.send_modify(|state| state.next = number + 1);
    }

    /// Tells what ports have received and sent to everybody who follows that.
    pub fn tell_traffic(&self, traffic: &Traffic) {
        let Ok(json) = serde_json::to_string(traffic) else { return };
        self.traffic.send_replace(Bytes::from(format!("event: traffic\ndata: {json}\n\n")));
    }

    /// Whether anybody follows what ports receive and send.
    pub fn is_traffic_wanted(&self) -> bool {
        self.traffic.receiver_count() > 0
    }

    /// What ports receive and send from now on. While this is there,
    /// [`is_traffic_wanted`](Self::is_traffic_wanted).
    pub fn traffic(&self) -> LatestTraffic {
        LatestTraffic(self.traffic.subscribe())
    }

    /// There will be no more: the daemon ends.
    pub fn close(&self) {
        self.state.send_modify(|state| state.closed = true);
    }

    /// Whether there will be no more.
    pub fn is_closed(&self) -> bool {
        self.state.borrow().closed
    }

    /// Says when there may be more to read, or never more.
    pub fn changes(&self) -> Changes {
        Changes(self.state.subscribe())
    }

    /// Where a reader begins; `Err` with where it has to where what it asks for is not known any
    /// more.
    pub fn place(&self, since: &Since) -> Result<Place, Place> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        let next = ring.first + ring.frames.len() as u64;
        match since {
            Since::Now => Ok(Place(next)),
            Since::Oldest => Ok(Place(ring.first)),
            Since::Event(id) => {
                let number = id.rsplit_once('-').filter(|(run, _)| *run == self.run);
                let number = number.and_then(|(_, number)| number.parse::<u64>().ok());
                match number {
                    Some(place) if (ring.first..=next).contains(&place) => Ok(Place(place)),
                    _ => Err(Place(next)),
                }
            }
        }
    }

    /// The id of the event before a place: who begins behind it begins there.
    pub fn id_before(&self, place: Place) -> String {
        self.id(place.0)
    }

    /// What there is to read at a place.
    pub fn read(&self, place: Place) -> Read {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        let Some(from) = place.0.checked_sub(ring.first) else {
            return Read::Lost(ring.first - place.0);
        };
        let mut text = String::new();
        let mut next = place.0;
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        for frame in ring.frames.iter().skip(from) {
            text.push_str(frame);
            next += 1;
            if text.len() > READ_MAX {
                break;
            }
        }
        match text.is_empty() {
            true => Read::Nothing,
            false => Read::Frames(text, Place(next)),
        }
    }

    /// The id of the event behind which so many have been told, it included.
    fn id(&self, count: u64) -> String {
        format!("{}-{count}", self.run)
    }
}

/// Says when there is more to read.
#[derive(Debug)]
pub struct Changes(watch::Receiver<State>);

impl Changes {
    /// Returns when something was told, or the feed was closed, since this was asked last.
    pub async fn next(&mut self) {
        // An error is a feed that is gone: its readers see that by themselves.
        let _ = self.0.changed().await;
    }
}

/// Traffic as it is told, for one reader. Who reads slowly misses what was not the latest.
#[derive(Debug)]
pub struct LatestTraffic(watch::Receiver<Bytes>);

impl LatestTraffic {
    /// The server-sent event of what was told last, where that was not taken yet.
    pub fn take(&mut self) -> Option<Bytes> {
        let is_new = self.0.has_changed().unwrap_or(false);
        is_new.then(|| self.0.borrow_and_update().clone())
    }

    /// The server-sent event of what is told next. Nothing is lost where the caller stops waiting.
    pub async fn next(&mut self) -> Bytes {
        if self.0.changed().await.is_err() {
            // The feed is gone, and nothing will be told any more.
            std::future::pending::<()>().await;
        }
        self.0.borrow_and_update().clone()
    }
}

/// A server-sent event that is no news: `start`, `lost` or `end`.
pub fn notice(name: &str, id: &str, message: &str) -> String {
    let mut text = format!("event: {name}\n");
    if !id.is_empty() {
        let _ = writeln!(text, "id: {id}");
    }
    let data = serde_json::json!({ "message": message });
    let _ = write!(text, "data: {data}\n\n");
    text
}

fn shorten(text: &mut String) {
    if let Some((end, _)) = text.char_indices().nth(MESSAGE_MAX) {
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(message: &str) -> News {
        News {
            kind: NewsKind::Drift,
            resource: "adapters/a".into(),
            reason: "Repaired".into(),
            message: message.into(),
            revision: None,
        }
    }

    fn told(count: usize) -> Feed {
        let feed = Feed::default();
        (0..count).for_each(|n| feed.tell("2026-11-22T15:04:05Z".into(), news(&n.to_string())));
        feed
    }

    fn read(feed: &Feed, place: Place) -> (Vec<Event>, Place) {
        match feed.read(place) {
            Read::Frames(text, next) => {
                let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
                (data.map(|json| serde_json::from_str(json).unwrap()).collect(), next)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_reader_goes_on_behind_the_event_that_it_has_read_last() {
        let feed = told(3);
        let (events, next) = read(&feed, feed.place(&Since::Oldest).unwrap());
        assert_eq!(events.len(), 3);
        assert_eq!(feed.read(next), Read::Nothing);
        let resumed = feed.place(&Since::Event(events[0].id.clone())).unwrap();
        assert_eq!(read(&feed, resumed).0, events[1..]);
        assert_eq!(feed.id_before(resumed), events[0].id);
        assert_eq!(feed.place(&Since::Now), Ok(next));
    }

    #[test]
    fn a_place_before_the_first_event_can_be_gone_back_to() {
        let feed = Feed::default();
        let start = feed.place(&Since::Now).unwrap();
        let id = feed.id_before(start);
        feed.tell(String::new(), news("first"));
        assert_eq!(read(&feed, feed.place(&Since::Event(id)).unwrap()).0[0].news, news("first"));
    }

    #[test]
    fn who_asks_for_what_is_not_known_any_more_is_told_so() {
        let feed = told(EVENTS_KEPT + 10);
        let now = feed.place(&Since::Now).unwrap();
        for id in ["", "x", "x-1", &feed.id(9), &feed.id(EVENTS_KEPT as u64 + 11), "1-1"] {
            assert_eq!(feed.place(&Since::Event(id.into())), Err(now), "{id}");
        }
        assert!(feed.place(&Since::Event(feed.id(10))).is_ok());
        assert_eq!(feed.read(Place(0)), Read::Lost(10));
    }

    #[test]
    fn traffic_is_told_to_who_follows_it_and_only_the_latest_is_kept() {
        let feed = Feed::default();
        assert!(!feed.is_traffic_wanted());
        feed.tell_traffic(&Traffic { over_ms: 1, ..Traffic::default() });
        let mut traffic = feed.traffic();
        assert!(feed.is_traffic_wanted());
        assert_eq!(traffic.take(), None, "what was told before is of the past");
        for over_ms in [2, 3] {
            feed.tell_traffic(&Traffic { over_ms, ..Traffic::default() });
        }
        let frame = traffic.take().unwrap();
        let data = frame.strip_prefix(b"event: traffic\ndata: ").unwrap();
        let told: Traffic = serde_json::from_slice(data).unwrap();
        assert_eq!(told.over_ms, 3);
        assert_eq!(traffic.take(), None);
        drop(traffic);
        assert!(!feed.is_traffic_wanted());
    }

    #[test]
    fn what_a_guest_makes_long_is_short() {
        let feed = Feed::default();
        feed.tell(String::new(), news(&"é".repeat(100_000)));
        let (events, _) = read(&feed, Place(0));
        assert_eq!(events[0].news.message.chars().count(), MESSAGE_MAX + 1);
    }
}
