//! The stream of events over real sockets: many readers, slow ones, and the end of the daemon.

use std::{sync::Arc, time::Duration};

use axum::http::Method;
use eswitchd_api::{
    client::{ClientError, Told},
    events::{EVENTS_KEPT, Feed, News, NewsKind, Traffic},
    resources::{FrameCounts, PortTraffic},
    server::{Daemon, Limits, router, router_with},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    ask::{ask, get},
    double::Double,
    wire::{Running, within},
};

fn tell(feed: &Feed, message: &str) {
    let news = News {
        kind: NewsKind::Condition,
        resource: "ports/web-1".into(),
        reason: "Programmed".into(),
        message: message.into(),
        revision: None,
    };
    feed.tell("2026-11-22T15:04:05.000Z".into(), news);
}

async fn daemon() -> (Arc<Feed>, Running) {
    let double = Double::with(|_| {});
    (double.feed(), Running::usual(double).await)
}

/// The message of a news, or the name of a notice.
fn word(told: Option<Told>) -> String {
    match told {
        Some(Told::Event(event)) => event.news.message,
        Some(Told::Notice { name, .. }) => name,
        None => "over".into(),
    }
}

#[tokio::test]
async fn a_stream_begins_now_goes_on_and_is_resumed_where_it_was() {
    let (feed, daemon) = daemon().await;
    tell(&feed, "before");
    let mut stream = daemon.client().events(None, true).await.unwrap();
    assert_eq!(word(stream.next().await.unwrap()), "start");
    tell(&feed, "one");
    let Some(Told::Event(one)) = within(5, stream.next()).await.unwrap() else { panic!() };
    assert_eq!(one.news.message, "one");
    drop(stream);
    tell(&feed, "two");
    let mut stream = daemon.client().events(Some(&one.id), true).await.unwrap();
    assert_eq!(word(stream.next().await.unwrap()), "start");
    assert_eq!(word(stream.next().await.unwrap()), "two");

    let mut all = daemon.client().events(Some("0"), false).await.unwrap();
    for expected in ["start", "before", "one", "two", "over"] {
        assert_eq!(word(within(5, all.next()).await.unwrap()), expected);
    }
    let mut other = daemon.client().events(Some("another-1"), false).await.unwrap();
    assert_eq!(word(other.next().await.unwrap()), "lost");
}

#[tokio::test]
async fn a_browser_that_connects_again_says_where_it_was_in_a_header() {
    let double = Double::with(|_| {});
    let feed = double.feed();
    tell(&feed, "one");
    tell(&feed, "two");
    let api = router(double);
    let all = get(&api, "/v1/events?since=0&follow=false").await;
    assert_eq!(all.header("content-type"), "text/event-stream");
    let text = String::from_utf8(all.body).unwrap();
    let id = text.lines().filter_map(|line| line.strip_prefix("id: ")).nth(1).unwrap();
    let request = axum::http::Request::get("/v1/events?follow=false").header("last-event-id", id);
    let rest = crate::ask::send(&api, request.body(axum::body::Body::empty()).unwrap()).await;
    let rest = String::from_utf8(rest.body).unwrap();
    assert!(rest.contains("two") && !rest.contains("\"one\""), "{rest}");
    let wrong = ask(&api, Method::GET, "/v1/events?follow=perhaps", "").await.problem();
    assert_eq!(wrong.field.as_deref(), Some("follow"));
}

#[tokio::test]
async fn a_thousand_streams_all_get_every_event_and_the_api_answers_beside_them() {
    const STREAMS: usize = 1000;
    const EVENTS: usize = 50;
    let (feed, daemon) = daemon().await;
    let mut readers = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = daemon.client().events(None, true).await.unwrap();
        assert_eq!(word(stream.next().await.unwrap()), "start");
        readers.push(tokio::spawn(async move {
            let mut read = Vec::new();
            while read.len() < EVENTS {
                read.push(word(stream.next().await.unwrap()));
            }
            read
        }));
    }
    let expected: Vec<String> = (0..EVENTS).map(|number| number.to_string()).collect();
    for message in &expected {
        tell(&feed, message);
        tokio::task::yield_now().await;
    }
    assert!(daemon.client().networks().await.unwrap().is_empty());
    for reader in readers {
        assert_eq!(within(60, reader).await.unwrap(), expected);
    }
}

/// Reads a stream until it says this; all of it.
async fn read_until(stream: &mut tokio::net::UnixStream, words: &str) -> String {
    let mut text = Vec::new();
    within(10, async {
        while !String::from_utf8_lossy(&text).contains(words) {
            let read = stream.read_buf(&mut text).await.unwrap();
            assert!(read > 0, "it ended: {}", String::from_utf8_lossy(&text));
        }
    })
    .await;
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn who_asks_for_traffic_is_told_between_the_events_and_nobody_else_is() {
    let (feed, daemon) = daemon().await;
    let mut streams = Vec::new();
    for query in ["?traffic=true", "?traffic=true", "", "?traffic=false"] {
        let mut stream = daemon.connect().await;
        let request = format!("GET /v1/events{query} HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        read_until(&mut stream, "event: start").await;
        streams.push(stream);
    }
    assert!(feed.is_traffic_wanted());
    let received = FrameCounts { packets: 3, bytes: 180 };
    let port = PortTraffic { received, ..PortTraffic::default() };
    let ports = [("web-1".parse().unwrap(), port)].into();
    let traffic = Traffic { at: "2026-11-22T15:04:05.000Z".into(), over_ms: 2003, ports };
    feed.tell_traffic(&traffic);
    let mut texts = Vec::new();
    for stream in &mut streams[..2] {
        texts.push(read_until(stream, "\"bytes\":0}}}}").await);
    }
    for text in texts {
        let data = text.split_once("event: traffic\ndata: ").unwrap().1.lines().next().unwrap();
        assert_eq!(serde_json::from_str::<Traffic>(data).unwrap(), traffic);
    }
    tell(&feed, "news");
    for (number, stream) in streams.iter_mut().enumerate() {
        let text = read_until(stream, "news").await;
        assert!(!text.contains("traffic"), "{number}: {text}");
    }
    drop(streams);
    within(10, async {
        while feed.is_traffic_wanted() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn traffic_comes_through_a_flood_of_events() {
    let (feed, daemon) = daemon().await;
    let mut stream = daemon.connect().await;
    stream.write_all(b"GET /v1/events?traffic=true HTTP/1.0\r\n\r\n").await.unwrap();
    read_until(&mut stream, "event: start").await;
    (0..EVENTS_KEPT / 2).for_each(|_| tell(&feed, "flood"));
    feed.tell_traffic(&Traffic::default());
    let text = read_until(&mut stream, "event: traffic").await;
    // What one read gives may be on its way already, and what the sockets hold.
    let told = text.matches("flood").count();
    assert!(told < EVENTS_KEPT / 2, "{told} events came before it");
}

#[tokio::test]
async fn traffic_is_refused_to_who_does_not_stay() {
    let api = router(Double::with(|_| {}));
    let refused = get(&api, "/v1/events?traffic=true&follow=false").await.problem();
    assert_eq!(refused.field.as_deref(), Some("traffic"));
    assert_eq!(get(&api, "/v1/events?traffic=false&follow=false").await.status, 200);
    assert_eq!(get(&api, "/v1/events?traffic=maybe").await.status, 400);
}

#[tokio::test]
async fn one_stream_too_many_is_refused_and_has_room_when_another_ends() {
    let double = Double::with(|_| {});
    let api = router_with(double, Limits { streams: 1, ..Limits::default() });
    let request = || axum::http::Request::get("/v1/events").body(axum::body::Body::empty());
    let first = tower::ServiceExt::oneshot(api.clone(), request().unwrap()).await.unwrap();
    assert_eq!(get(&api, "/v1/events").await.problem().kind, "/problems/overloaded");
    assert_eq!(get(&api, "/v1/networks").await.status, 200);
    drop(first);
    assert_eq!(get(&api, "/v1/events?follow=false").await.status, 200);
}

#[tokio::test]
async fn a_reader_that_is_overtaken_is_told_so_last_and_nobody_waits_for_it() {
    let (feed, daemon) = daemon().await;
    let mut slow = daemon.connect().await;
    slow.write_all(b"GET /v1/events HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut first = [0; 1];
    slow.read_exact(&mut first).await.unwrap();
    // More than sockets and the feed hold, while nothing is read.
    let long = "x".repeat(380);
    for _ in 0..4 {
        (0..EVENTS_KEPT).for_each(|_| tell(&feed, &long));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut rest = Vec::new();
    let end = "you read too slowly";
    within(15, async {
        let mut piece = [0; 65536];
        while !String::from_utf8_lossy(&rest).contains(end) {
            let read = slow.read(&mut piece).await.unwrap();
            assert!(read > 0, "it ended without a word");
            rest.extend_from_slice(&piece[..read]);
        }
    })
    .await;
    let text = String::from_utf8_lossy(&rest);
    let last = text.rfind("event: ").map(|at| &text[at..]).unwrap();
    assert!(last.starts_with("event: lost"), "{last}");
}

#[tokio::test]
async fn the_end_of_the_daemon_is_told_and_streams_do_not_hold_it_up() {
    let (feed, mut daemon) = daemon().await;
    let mut stream = daemon.client().events(None, true).await.unwrap();
    assert_eq!(word(stream.next().await.unwrap()), "start");
    feed.close();
    assert_eq!(word(within(5, stream.next()).await.unwrap()), "end");
    assert_eq!(word(within(5, stream.next()).await.unwrap()), "over");
    within(3, daemon.stop()).await;
    let gone = daemon.client().events(None, true).await.unwrap_err();
    assert!(matches!(gone, ClientError::Unreachable { .. }), "{gone}");
}
