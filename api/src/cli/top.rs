//! `eswitchctl top`: what ports receive, send and lose at the moment.
//!
//! In: the daemon's counters, read again and again, and keys. Out: a screen on a terminal, else a
//! table for each interval. Nothing but this room knows that counters come as metrics.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    CommandError, Exit,
    screen::{self, Screen},
    table::{self, printable},
};
use crate::client::Client;

/// How it goes on.
pub(super) struct How {
    /// Time between two readings.
    pub(super) interval: Duration,
    /// How many intervals; without an end where absent.
    pub(super) count: Option<u32>,
}

pub(super) async fn top(
    client: &Client,
    how: How,
    out: &mut dyn Write,
) -> Result<Exit, CommandError> {
    match io::stdin().is_terminal() && io::stdout().is_terminal() {
        true => on_terminal(client, how, out).await,
        false => in_tables(client, how, out).await,
    }
}

async fn in_tables(
    client: &Client,
    How { interval, count }: How,
    out: &mut dyn Write,
) -> Result<Exit, CommandError> {
    let mut before = read(client).await?;
    let mut left = count;
    while left != Some(0) {
        tokio::time::sleep(interval).await;
        let now = read(client).await?;
        let rows = sorted(rates(&before, &now), Order::Name);
        table::write(out, "", HEAD, rows.iter().map(Row::cells))?;
        out.flush()?;
        before = now;
        left = left.map(|left| left - 1);
        if left != Some(0) {
            writeln!(out)?;
        }
    }
    Ok(Exit::Done)
}

async fn on_terminal(
    client: &Client,
    How { interval, count }: How,
    out: &mut dyn Write,
) -> Result<Exit, CommandError> {
    let colours = std::env::var_os("NO_COLOR").is_none();
    let mut before = read(client).await?;
    let mut order = Order::Received;
    let mut left = count;
    let _screen = Screen::take()?;
    let (typed, mut keys) = mpsc::channel(8);
    screen::send_keys(typed);
    let title = format!("eswitchd at {}", client.server());
    let mut rows: Option<Vec<Row>> = None;
    let mut due = tokio::time::Instant::now() + interval;
    loop {
        let text = page(&title, rows.clone(), order, screen::size());
        screen::paint(out, &text, colours)?;
        if left == Some(0) {
            return Ok(Exit::Done);
        }
        tokio::select! {
            key = keys.recv() => match key {
                None | Some(b'q' | screen::INTERRUPT) => return Ok(Exit::Done),
                Some(key) => order = Order::of_key(key).unwrap_or(order),
            },
            () = tokio::time::sleep_until(due) => {
                let now = read(client).await?;
                rows = Some(rates(&before, &now));
                before = now;
                due += interval;
                left = left.map(|left| left - 1);
            }
        }
    }
}

// ---------------------------------------------------------------- counters

/// What the counters said.
#[derive(Debug)]
struct Reading {
    at: Instant,
    ports: BTreeMap<String, Counts>,
}

/// What a port has counted since its counters began.
#[derive(Debug, Clone, Default, PartialEq)]
struct Counts {
    received_bytes: f64,
    received_frames: f64,
    sent_bytes: f64,
    sent_frames: f64,
    /// Frames by reason.
    dropped: BTreeMap<String, f64>,
}

async fn read(client: &Client) -> Result<Reading, CommandError> {
    let text = client.metrics().await?;
    Ok(Reading { at: Instant::now(), ports: counts(&text) })
}

/// The counters of ports in a text of metrics.
fn counts(text: &str) -> BTreeMap<String, Counts> {
    let mut ports = BTreeMap::<String, Counts>::new();
    for line in text.lines() {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let Some((name, labels)) = series.split_once('{') else { continue };
        // Ids and reasons have no character that would be escaped.
        let label = |name: &str| {
            let start = format!("{name}=\"");
            labels.split_once(&start)?.1.split_once('"').map(|(value, _)| value.to_owned())
        };
        let Some(port) = label("port") else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        let counts = ports.entry(port).or_default();
        match name {
            "eswitchd_port_received_bytes_total" => counts.received_bytes = value,
            "eswitchd_port_received_packets_total" => counts.received_frames = value,
            "eswitchd_port_sent_bytes_total" => counts.sent_bytes = value,
            "eswitchd_port_sent_packets_total" => counts.sent_frames = value,
            "eswitchd_port_dropped_packets_total" => {
                counts.dropped.insert(label("reason").unwrap_or_default(), value);
            }
            _ => {}
        }
    }
    ports
}

/// What a port did in a second.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    port: String,
    received_bits: f64,
    received_frames: f64,
    sent_bits: f64,
    sent_frames: f64,
    dropped_frames: f64,
    /// What most of them were dropped for.
    reason: String,
}

/// The ports of the later reading, each with what it did in a second since the earlier one. A
/// counter that is less than before has begun anew.
fn rates(before: &Reading, now: &Reading) -> Vec<Row> {
    let seconds = (now.at - before.at).as_secs_f64().max(0.001);
    let row = |(port, counts): (&String, &Counts)| {
        let was = before.ports.get(port);
        // What a port that is new counted before nobody knows.
        let was = was.unwrap_or(counts);
        let rate = |now: f64, was: f64| (if now < was { now } else { now - was }) / seconds;
        let drops = counts.dropped.iter().map(|(reason, frames)| {
            let was = was.dropped.get(reason).copied().unwrap_or(0.0);
            (reason, rate(*frames, was))
        });
        let drops: Vec<(&String, f64)> = drops.filter(|(_, rate)| *rate > 0.0).collect();
        let most = drops.iter().max_by(|(_, one), (_, other)| one.total_cmp(other));
        Row {
            port: port.clone(),
            received_bits: rate(counts.received_bytes, was.received_bytes) * 8.0,
            received_frames: rate(counts.received_frames, was.received_frames),
            sent_bits: rate(counts.sent_bytes, was.sent_bytes) * 8.0,
            sent_frames: rate(counts.sent_frames, was.sent_frames),
            dropped_frames: drops.iter().map(|(_, rate)| rate).sum(),
            reason: most.map_or("-".to_owned(), |(reason, _)| (*reason).clone()),
        }
    };
    now.ports.iter().map(row).collect()
}

// ---------------------------------------------------------------- the table

const HEAD: [&str; 7] =
    ["PORT", "RECEIVED bit/s", "frames/s", "SENT bit/s", "frames/s", "DROPPED/s", "MOSTLY FOR"];

impl Row {
    fn cells(&self) -> [String; 7] {
        [
            self.port.clone(),
            scaled(self.received_bits),
            scaled(self.received_frames),
            scaled(self.sent_bits),
            scaled(self.sent_frames),
            scaled(self.dropped_frames),
            self.reason.clone(),
        ]
    }
}

/// What comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Name,
    Received,
    Sent,
    Dropped,
}

impl Order {
    const fn of_key(key: u8) -> Option<Order> {
        match key {
            b'n' => Some(Order::Name),
            b'r' => Some(Order::Received),
            b's' => Some(Order::Sent),
            b'd' => Some(Order::Dropped),
            _ => None,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Order::Name => "name",
            Order::Received => "received",
            Order::Sent => "sent",
            Order::Dropped => "dropped",
        }
    }
}

/// In that order; ports that are alike in order of their names.
fn sorted(mut rows: Vec<Row>, order: Order) -> Vec<Row> {
    // Rates are whole enough for an order by whole numbers.
    rows.sort_by_key(|row| {
        let most = match order {
            Order::Name => 0.0,
            Order::Received => row.received_bits,
            Order::Sent => row.sent_bits,
            Order::Dropped => row.dropped_frames,
        };
        (Reverse(most as u64), row.port.clone())
    });
    rows
}

/// The lines of a screen of so many lines and columns.
fn page(
    title: &str,
    rows: Option<Vec<Row>>,
    order: Order,
    (lines, columns): (usize, usize),
) -> Vec<String> {
    let mut text = Vec::new();
    let keys = "keys: n name, r received, s sent, d dropped, q quit";
    match rows {
        None => text.extend([printable(title).into_owned(), keys.to_owned()]),
        Some(rows) => {
            let sum = |of: fn(&Row) -> f64| scaled(rows.iter().map(of).sum());
            text.push(format!(
                "{}: {} ports, received {}bit/s, sent {}bit/s, dropped {}/s",
                printable(title),
                rows.len(),
                sum(|row| row.received_bits),
                sum(|row| row.sent_bits),
                sum(|row| row.dropped_frames),
            ));
            text.push(format!("by {}; {keys}", order.as_str()));
            let mut table = Vec::new();
            let rows = sorted(rows, order);
            // Memory takes whatever is written.
            let _ = table::write(&mut table, "", HEAD, rows.iter().map(Row::cells));
            text.push(String::new());
            text.extend(String::from_utf8_lossy(&table).lines().map(str::to_owned));
        }
    }
    text.truncate(lines.max(1));
    text.iter().map(|line| line.chars().take(columns).collect()).collect()
}

/// A number with three digits or so: `1.25 G`.
fn scaled(number: f64) -> String {
    // A sum of nothing is -0.
    let number = number + 0.0;
    let units = [(1e9, "G"), (1e6, "M"), (1e3, "k")];
    match units.into_iter().find(|(least, _)| number >= *least) {
        Some((unit, name)) => format!("{:.2} {name}", number / unit),
        None => format!("{number:.0} "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(at: Instant, text: &str) -> Reading {
        Reading { at, ports: counts(text) }
    }

    fn metrics(port: &str, received: u64, sent: u64, spoofed: u64) -> String {
        format!(
            "# TYPE eswitchd_port_received_bytes_total counter\n\
             eswitchd_port_received_bytes_total{{port=\"{port}\"}} {received}\n\
             eswitchd_port_received_packets_total{{port=\"{port}\"}} {}\n\
             eswitchd_port_sent_bytes_total{{port=\"{port}\"}} {sent}\n\
             eswitchd_port_dropped_packets_total{{port=\"{port}\",reason=\"tag\"}} 7\n\
             eswitchd_port_dropped_packets_total{{port=\"{port}\",reason=\"spoofed_mac\"}} {spoofed}\n\
             eswitchd_flows{{adapter=\"soft-lab\",state=\"in_hw\"}} 4\n",
            received / 100
        )
    }

    #[test]
    fn a_rate_is_the_difference_by_the_time_between() {
        let began = Instant::now();
        let before = reading(began, &metrics("a", 1_000, 500, 0));
        let now = reading(began + Duration::from_secs(2), &metrics("a", 251_000, 500, 30));
        let row = Row {
            port: "a".into(),
            received_bits: 1_000_000.0,
            received_frames: 1_250.0,
            sent_bits: 0.0,
            sent_frames: 0.0,
            dropped_frames: 15.0,
            reason: "spoofed_mac".into(),
        };
        assert_eq!(rates(&before, &now), [row]);
    }

    #[test]
    fn a_counter_that_begins_anew_and_a_port_that_is_new_give_no_leap() {
        let began = Instant::now();
        let before = reading(began, &metrics("a", 9_000, 0, 0));
        let later = began + Duration::from_secs(1);
        let now = reading(later, &(metrics("a", 1_000, 0, 0) + &metrics("b", 1_000_000, 0, 0)));
        let bits: Vec<f64> = rates(&before, &now).iter().map(|row| row.received_bits).collect();
        assert_eq!(bits, [8_000.0, 0.0]);
    }

    #[test]
    fn a_screen_has_the_busiest_first_and_no_more_than_fits() {
        let began = Instant::now();
        let both = |a, b| metrics("a", a, 0, 0) + &metrics("b", b, 0, 0);
        let before = reading(began, &both(0, 0));
        let now = reading(began + Duration::from_secs(1), &both(125, 250_000_000));
        let text = page("host", Some(rates(&before, &now)), Order::Received, (5, 70));
        assert_eq!(
            text,
            [
                "host: 2 ports, received 2.00 Gbit/s, sent 0 bit/s, dropped 0 /s",
                "by received; keys: n name, r received, s sent, d dropped, q quit",
                "",
                "PORT  RECEIVED bit/s  frames/s  SENT bit/s  frames/s  DROPPED/s  MOSTL",
                "b     2.00 G          2.50 M    0           0         0          -",
            ]
        );
        let by_name = page("host", Some(rates(&before, &now)), Order::Name, (9, 70));
        assert!(by_name[4].starts_with("a     1.00 k"), "{by_name:?}");
        assert_eq!(page("host", None, Order::Name, (1, 3)), ["hos"]);
    }
}
