//! What ports send and receive, what of it is dropped and why: read from the kernel when somebody
//! asks for the metrics, or for a port, where that was long ago.
//!
//! In: netdevs' counters and terse dumps, hook by hook, from a task with connections of its own, so
//! that a slow kernel delays who asks and never the loop. Out: metrics, and each port's statistics. Who
//! asks for metrics within [`FRESH`] of the last reading, or while one is under way, shares it; who
//! asks for a port gets what was read last. While somebody follows what ports receive and send,
//! netdevs' counters alone are read every [`PACE`], however many follow.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant, SystemTime},
};

use api::{
    events,
    resources::{FrameCounts, PortStatistics, PortTraffic},
    types::Id,
};
use tc_flows::{Action, Cookie, Counters, Handle, Hook, Ifindex, Kernel, NetlinkKernel, TerseRule};
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::{Finished, Owner, measuring::number};
use crate::{
    daemon::FLOW_OWNER,
    metrics::{DROP_REASONS, HIT_BY, Row},
    observe::host::{Traffic, software_traffic, traffic},
    plan::{
        self, Program,
        switchdev::{Purpose, Why},
    },
};

/// How old a reading may be that answers.
const FRESH: Duration = Duration::from_secs(1);

/// How old it may be where a port is asked for, before the next reading begins.
const RECENT: Duration = Duration::from_secs(10);

/// How often what ports receive and send is told to who follows it.
const PACE: Duration = Duration::from_secs(2);

/// Of what there are ceilings, as the label says it.
pub(super) const CEILINGS: [&str; 3] = ["actions", "chain", "prio"];

/// A rule's chain, prio and handle: its place at a hook.
type Place = (u32, u16, Handle);

/// What a rule has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Count {
    cookie: Cookie,
    software: Counters,
    hardware: Counters,
    /// Of a policer.
    drops: u32,
}

impl Count {
    fn of(rule: &TerseRule) -> Count {
        let (software, hardware) = (rule.stats.software, rule.stats.hardware);
        Count { cookie: rule.cookie, software, hardware, drops: rule.stats.drops }
    }

    /// What came since; all of it where it is another rule, or one that was written anew.
    fn since(self, before: Option<&Count>) -> Count {
        let packets = |count: &Count| count.software.packets + count.hardware.packets;
        let Some(before) = before
            .filter(|before| before.cookie == self.cookie && packets(before) <= packets(&self))
        else {
            return self;
        };
        Count {
            cookie: self.cookie,
            software: less(self.software, before.software),
            hardware: less(self.hardware, before.hardware),
            drops: self.drops.wrapping_sub(before.drops),
        }
    }

    const fn all(self) -> Counters {
        Counters {
            packets: self.software.packets + self.hardware.packets,
            bytes: self.software.bytes + self.hardware.bytes,
        }
    }
}

const fn less(now: Counters, before: Counters) -> Counters {
    Counters {
        packets: now.packets.saturating_sub(before.packets),
        bytes: now.bytes.saturating_sub(before.bytes),
    }
}

/// What came since; all of it where the netdev was not there before.
fn more_traffic(now: Traffic, before: Option<&Traffic>) -> Traffic {
    let before = before.copied().unwrap_or_default();
    Traffic { received: less(now.received, before.received), sent: less(now.sent, before.sent) }
}

/// A netdev's traffic from the side of its VF: what a representor receives its VF has sent.
const fn port_traffic(netdev: Traffic) -> PortTraffic {
    PortTraffic { received: frames(netdev.sent), sent: frames(netdev.received) }
}

/// What each port has received and sent since; without those that have not.
fn moved_since(
    now: &BTreeMap<Id, Traffic>,
    before: &BTreeMap<Id, Traffic>,
) -> BTreeMap<Id, PortTraffic> {
    let moved = now
        .iter()
        .map(|(port, now)| (port.clone(), port_traffic(more_traffic(*now, before.get(port)))));
    moved.filter(|(_, moved)| *moved != PortTraffic::default()).collect()
}

fn add(sum: &mut Counters, more: Counters) {
    sum.packets += more.packets;
    sum.bytes += more.bytes;
}

const fn frames(count: Counters) -> FrameCounts {
    FrameCounts { packets: count.packets, bytes: count.bytes }
}

/// What was counted, and who waits for the next reading.
#[derive(Debug, Default)]
pub(super) struct Counting {
    read: Option<Instant>,
    under_way: bool,
    waiting: Vec<oneshot::Sender<()>>,
    /// Whether netdevs are being read: one reading at a time, so that none is overtaken by an older
    /// one.
    reading_netdevs: bool,
    /// When what has moved was told last, and what had moved then.
    told: Option<(Instant, BTreeMap<Id, Traffic>)>,
    /// What netdevs had counted when they were read last.
    traffic: BTreeMap<Ifindex, Traffic>,
    /// What each port's representor has received and sent, over all that it has had.
    moved: BTreeMap<Id, Traffic>,
    /// What of their traffic had gone through the host's CPU, where their drivers tell.
    software: BTreeMap<Ifindex, Traffic>,
    /// And what of each port's.
    moved_in_software: BTreeMap<Id, Traffic>,
    /// What rules had counted when they were read last; of those that had counted anything.
    seen: BTreeMap<Hook, HashMap<Place, Count>>,
    /// What each port's frames were dropped for.
    dropped: BTreeMap<Id, BTreeMap<&'static str, Counters>>,
    /// Where each port's frames met their first flow, in the order of [`HIT_BY`].
    first: BTreeMap<Id, [u64; 2]>,
    /// The most that a rule of each adapter has, in the order of [`CEILINGS`].
    highest: BTreeMap<Id, [u32; 3]>,
}

impl Owner {
    /// Answers when the metrics of ports and flows are fresh.
    pub(super) fn count(&mut self, waiter: oneshot::Sender<()>) {
        if self.counting.read.is_some_and(|read| read.elapsed() < FRESH) {
            waiter.send(()).ok();
            return;
        }
        self.counting.waiting.push(waiter);
        self.read_counters();
    }

    /// What a port has counted when it was read last; the next reading begins where that was long
    /// ago.
    pub(super) fn recount(&mut self) {
        if self.counting.read.is_none_or(|read| read.elapsed() > RECENT) {
            self.read_counters();
        }
    }

    /// What was read of a port's counters last, if anything was.
    pub(super) fn statistics(&self, port: &Id) -> Option<PortStatistics> {
        let Counting { read, moved, moved_in_software, dropped, .. } = &self.counting;
        let Traffic { received: sent, sent: received } = moved.get(port)?;
        let dropped = dropped.get(port).into_iter().flatten();
        let dropped = dropped.filter(|(_, count)| count.packets > 0);
        Some(PortStatistics {
            age_ms: u64::try_from(read.as_ref()?.elapsed().as_millis()).unwrap_or(u64::MAX),
            received: frames(*received),
            sent: frames(*sent),
            software: moved_in_software.get(port).copied().map(port_traffic),
            dropped: dropped
                .map(|(reason, count)| ((*reason).to_owned(), frames(*count)))
                .collect(),
        })
    }

    fn read_counters(&mut self) {
        if std::mem::replace(&mut self.counting.under_way, true) {
            return;
        }
        self.counting.highest.clear();
        let programs = self.planner.plan().programs.iter();
        let hooks = programs.filter_map(|(id, program)| match program {
            Program::Flows(program) => Some((id, program)),
            Program::VfSettings(_) => None,
        });
        let hooks: Vec<(Id, Hook)> = hooks
            .flat_map(|(id, program)| {
                let counts = |hook: &Hook| program.rules.of_hook(*hook).next().is_some();
                program.hooks().filter(counts).map(|hook| (id.clone(), hook))
            })
            .collect();
        let finished = self.finished_to.clone();
        let netdevs = self.read_netdevs();
        tokio::spawn(async move {
            // First these: who follows them does not wait for all flows.
            netdevs.await;
            match software_traffic().await {
                Ok(traffic) => drop(finished.send(Finished::MovedInSoftware(traffic))),
                // A kernel before 4.8 does not know the question.
                Err(error) => debug!(%error, "software counters of netdevs"),
            }
            tokio::task::spawn_blocking(move || {
                match NetlinkKernel::open(FLOW_OWNER) {
                    Ok(mut kernel) => {
                        for (id, hook) in hooks {
                            // One that has gone meanwhile counts nothing any more.
                            let Ok(dump) = kernel.dump_terse(hook) else { continue };
                            finished.send(Finished::Counted(id, hook, dump.own)).ok();
                        }
                    }
                    Err(error) => warn!(%error, "counters of flows"),
                }
                finished.send(Finished::CountedAll).ok();
            });
        });
    }

    /// Reads what netdevs have counted, unless that is under way.
    fn read_netdevs(&mut self) -> impl Future<Output = ()> + Send + use<> {
        let under_way = std::mem::replace(&mut self.counting.reading_netdevs, true);
        let finished = self.finished_to.clone();
        async move {
            if under_way {
                return;
            }
            let traffic = traffic().await;
            let traffic = traffic.inspect_err(|error| warn!(%error, "counters of netdevs")).ok();
            finished.send(Finished::Moved(traffic)).ok();
        }
    }

    /// Has netdevs read again where somebody follows what ports receive and send, and that was told
    /// some time ago.
    pub(super) fn follow_traffic(&mut self) {
        if !self.outlets.feed.is_traffic_wanted() {
            self.counting.told = None;
            return;
        }
        let told = self.counting.told.as_ref();
        let is_due = told.is_none_or(|(told, _)| told.elapsed() >= PACE);
        if is_due && !self.counting.reading_netdevs {
            tokio::spawn(self.read_netdevs());
        }
    }

    /// Books what netdevs have counted; nothing new where they could not be read.
    pub(super) fn moved(&mut self, traffic: Option<BTreeMap<Ifindex, Traffic>>) {
        self.counting.reading_netdevs = false;
        let Some(traffic) = traffic else { return };
        let before = std::mem::replace(&mut self.counting.traffic, traffic);
        let mut moved = std::mem::take(&mut self.counting.moved);
        self.book(&mut moved, &self.counting.traffic, &before);
        self.counting.moved = moved;
        self.tell_traffic();
    }

    /// Books what of it went through the host's CPU, where drivers tell.
    pub(super) fn moved_in_software(&mut self, traffic: BTreeMap<Ifindex, Traffic>) {
        let before = std::mem::replace(&mut self.counting.software, traffic);
        let mut moved = std::mem::take(&mut self.counting.moved_in_software);
        self.book(&mut moved, &self.counting.software, &before);
        self.counting.moved_in_software = moved;
    }

    /// Adds what netdevs have counted since `before` to what their ports have; ports that are no more
    /// have nothing.
    fn book(
        &self,
        moved: &mut BTreeMap<Id, Traffic>,
        now: &BTreeMap<Ifindex, Traffic>,
        before: &BTreeMap<Ifindex, Traffic>,
    ) {
        moved.retain(|port, _| self.intent.ports.contains_key(port));
        for (id, plan) in &self.planner.plan().ports {
            let netdev = plan.place.as_ref().ok().and_then(|place| place.representor.as_ref());
            let Some(ifindex) = netdev.map(|netdev| netdev.ifindex) else { continue };
            let Some(now) = now.get(&ifindex) else { continue };
            let more = more_traffic(*now, before.get(&ifindex));
            let sum = moved.entry(id.clone()).or_default();
            add(&mut sum.received, more.received);
            add(&mut sum.sent, more.sent);
        }
    }

    /// Tells who follows it what has moved since it was told last.
    fn tell_traffic(&mut self) {
        if !self.outlets.feed.is_traffic_wanted() {
            return;
        }
        let now = Instant::now();
        let is_due = |(told, _): &(Instant, _)| now.saturating_duration_since(*told) >= FRESH;
        if self.counting.told.as_ref().is_some_and(|told| !is_due(told)) {
            return;
        }
        let moved = self.counting.moved.clone();
        if let Some((told, before)) = self.counting.told.replace((now, moved)) {
            let over_ms = now.saturating_duration_since(told).as_millis();
            self.outlets.feed.tell_traffic(&events::Traffic {
                at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
                over_ms: u64::try_from(over_ms).unwrap_or(u64::MAX),
                ports: moved_since(&self.counting.moved, &before),
            });
        }
    }

    /// Books what the rules of a hook have counted.
    pub(super) fn counted(&mut self, id: &Id, hook: Hook, rules: &[TerseRule]) {
        let Some(Program::Flows(program)) = self.planner.plan().programs.get(id) else { return };
        let Some(state) = self.adapters.get(id) else { return };
        let before = self.counting.seen.remove(&hook).unwrap_or_default();
        let mut now: HashMap<Place, Count> = HashMap::new();
        let mut fresh: HashMap<Place, Count> = HashMap::new();
        let mut hits = [0; 2];
        for rule in rules {
            let count = Count::of(rule);
            if count.all().packets == 0 {
                continue;
            }
            let place = (rule.location.chain.get(), rule.location.prio.get(), rule.handle);
            now.insert(place, count);
            let since = count.since(before.get(&place));
            if since.all().packets > 0 {
                hits[0] += since.software.packets;
                hits[1] += since.hardware.packets;
                fresh.insert(place, since);
            }
        }
        self.counting.seen.insert(hook, now);
        for (by, hits) in HIT_BY.into_iter().zip(hits) {
            self.metrics.flow_hits.with_label_values(&[id.as_str(), by]).inc_by(hits);
        }
        let port = self.port_at(hook);
        let plan = port.as_ref().and_then(|port| self.planner.plan().ports.get(port));
        let admitted = plan.is_some_and(|port| !port.macs.is_empty());
        let highest = self.counting.highest.entry(id.clone()).or_default();
        let mut first = [0; 2];
        let mut drops: Vec<(&str, Counters)> = Vec::new();
        for held in state.flows.installed_at(hook) {
            let rule = &held.rule;
            let place = (rule.chain().get(), rule.prio().get(), held.handle);
            let actions = u32::try_from(rule.actions().len()).unwrap_or(u32::MAX);
            for (highest, now) in highest.iter_mut().zip([actions, place.0, place.1.into()]) {
                *highest = now.max(*highest);
            }
            let Some(count) = fresh.get(&place) else { continue };
            let Some((_, why)) = program.rules.get_noted(rule.id()) else { continue };
            // A policer hands what it lets pass to the rules behind it.
            if place.0 == 0 && !is_policer(why.purpose) {
                first[0] += count.software.packets;
                first[1] += count.hardware.packets;
            }
            let Some(reason) = reason(why, rule.actions(), admitted) else { continue };
            let more = match rule.actions() {
                [Action::Police(_), ..] => Counters { packets: count.drops.into(), bytes: 0 },
                _ => count.all(),
            };
            drops.push((reason, more));
        }
        for (by, frames) in HIT_BY.into_iter().zip(first) {
            self.metrics.adapter_frames.with_label_values(&[id.as_str(), by]).inc_by(frames);
        }
        let Some(port) = port else { return };
        let sums = self.counting.first.entry(port.clone()).or_default();
        for (sum, more) in sums.iter_mut().zip(first) {
            *sum += more;
        }
        let dropped = self.counting.dropped.entry(port).or_default();
        for (reason, more) in drops {
            add(dropped.entry(reason).or_default(), more);
        }
    }

    /// Tells what was counted.
    pub(super) fn counted_all(&mut self) {
        let Owner { counting, metrics, intent, planner, .. } = self;
        counting.under_way = false;
        counting.read = Some(Instant::now());
        counting.dropped.retain(|port, _| intent.ports.contains_key(port));
        counting.first.retain(|port, _| intent.ports.contains_key(port));
        let [mut received_bytes, mut received_packets, mut sent_bytes, mut sent_packets] =
            [const { Vec::<Row>::new() }; 4];
        let [mut dropped_bytes, mut dropped_packets, mut frames, mut in_software] =
            [const { Vec::<Row>::new() }; 4];
        for (id, plan) in &planner.plan().ports {
            let netdev = plan.place.as_ref().ok().and_then(|place| place.representor.as_ref());
            if netdev.is_none() {
                continue;
            }
            let label = || vec![id.to_string()];
            // What a representor receives its VF has sent.
            if let Some(Traffic { received: sent, sent: received }) = counting.moved.get(id) {
                received_bytes.push((label(), number(received.bytes)));
                received_packets.push((label(), number(received.packets)));
                sent_bytes.push((label(), number(sent.bytes)));
                sent_packets.push((label(), number(sent.packets)));
            }
            if let Some(Traffic { received: sent, sent: received }) =
                counting.moved_in_software.get(id)
            {
                for (way, count) in [("sent", sent), ("received", received)] {
                    in_software.push((vec![id.to_string(), way.to_owned()], number(count.packets)));
                }
            }
            let first = counting.first.get(id).copied().unwrap_or_default();
            for (by, count) in HIT_BY.into_iter().zip(first) {
                frames.push((vec![id.to_string(), by.to_owned()], number(count)));
            }
            let dropped = counting.dropped.get(id);
            for reason in DROP_REASONS {
                let count = dropped.and_then(|all| all.get(reason)).copied().unwrap_or_default();
                let label = || vec![id.to_string(), reason.to_owned()];
                dropped_bytes.push((label(), number(count.bytes)));
                dropped_packets.push((label(), number(count.packets)));
            }
        }
        let highest = counting.highest.iter().flat_map(|(id, highest)| {
            let row =
                |(of, most): (&str, &u32)| (vec![id.to_string(), of.to_owned()], f64::from(*most));
            CEILINGS.into_iter().zip(highest).map(row)
        });
        metrics.adapter_highest.replace(highest.collect());
        metrics.port_received_bytes.replace(received_bytes);
        metrics.port_received_packets.replace(received_packets);
        metrics.port_sent_bytes.replace(sent_bytes);
        metrics.port_sent_packets.replace(sent_packets);
        metrics.port_dropped_bytes.replace(dropped_bytes);
        metrics.port_dropped_packets.replace(dropped_packets);
        metrics.port_frames.replace(frames);
        metrics.port_software_packets.replace(in_software);
        for waiter in counting.waiting.drain(..) {
            waiter.send(()).ok();
        }
    }

    /// The port whose representor's hook this is.
    fn port_at(&self, hook: Hook) -> Option<Id> {
        let mut ports = self.planner.plan().ports.iter();
        let stands = |place: &plan::bind::Place| {
            place.representor.as_ref().is_some_and(|netdev| Some(netdev.ifindex) == hook.ifindex())
        };
        let (port, _) = ports.find(|(_, plan)| plan.place.as_ref().is_ok_and(stands))?;
        Some(port.clone())
    }
}

const fn is_policer(purpose: Purpose) -> bool {
    matches!(purpose, Purpose::Rate | Purpose::ReceiveRate | Purpose::Storm)
}

/// Why a rule drops what it counts, where it does.
fn reason(why: &Why, actions: &[Action], admitted: bool) -> Option<&'static str> {
    Some(match why.purpose {
        Purpose::DefaultDrop if admitted => "spoofed_mac",
        Purpose::DefaultDrop => "no_network",
        Purpose::SpoofGuard(_) => "spoofed_ip",
        Purpose::TagGuard | Purpose::DoubleTagGuard => "tag",
        Purpose::LinkLocalGuard => "link_local",
        Purpose::DhcpServerGuard => "dhcp_server",
        Purpose::RouterGuard => "router_advertisement",
        Purpose::Isolation(_) => "isolated",
        Purpose::Rate => "rate",
        Purpose::ReceiveRate => "rx_rate",
        Purpose::Storm => "storm",
        _ => return None,
    })
    .filter(|_| matches!(actions, [Action::Drop | Action::Police(_), ..]))
}
