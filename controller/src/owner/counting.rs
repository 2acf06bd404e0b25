//! What ports send and receive, what of it is dropped and why: read from the kernel when somebody
//! asks for the metrics, or for a port, where that was long ago.
//!
//! In: netdevs' counters and terse dumps, hook by hook, from a task with connections of its own, so
//! that a slow kernel delays who asks and never the loop. Out: metrics, and each port's statistics. Who
//! asks for metrics within [`FRESH`] of the last reading, or while one is under way, shares it; who
//! asks for a port gets what was read last. While somebody follows what ports receive and send,
//! netdevs' counters alone are read every [`PACE`], however many follow.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use api::{
    events,
    resources::{FrameCounts, PortStatistics, PortTraffic},
    types::Id,
};
use tc_flows::{Action, Cookie, Counters, Handle, Hook, Ifindex, Kernel, NetlinkKernel, TerseRule};
use tokio::sync::{Mutex, oneshot};
use tracing::{debug, warn};

use super::{
    Finished, Owner,
    books::{Books, add, less, since},
    carried::{self, CarriedPort},
    measuring::number,
};
use crate::{
    daemon::FLOW_OWNER,
    metrics::{DROP_REASONS, HIT_BY, Row},
    observe::host::{CounterReader, Traffic},
    plan::{
        Changes, PortPlan, Program,
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

/// The netdev that a port stands on.
fn netdev_of(port: &PortPlan) -> Option<Ifindex> {
    port.place.as_ref().ok()?.representor.as_ref().map(|netdev| netdev.ifindex)
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
    let moved =
        now.iter().map(|(port, now)| (port.clone(), port_traffic(since(*now, before.get(port)))));
    moved.filter(|(_, moved)| *moved != PortTraffic::default()).collect()
}

const fn frames(count: Counters) -> FrameCounts {
    FrameCounts { packets: count.packets, bytes: count.bytes }
}

/// What a port's rules have counted since they stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Standing {
    dropped: BTreeMap<&'static str, Counters>,
    first: [u64; 2],
}

impl Standing {
    /// What came since; where rules were written anew, all of it.
    fn since(&self, before: &Standing) -> Standing {
        let dropped = |(reason, now): (&&'static str, &Counters)| {
            let before = before.dropped.get(reason).copied().unwrap_or_default();
            let anew = now.packets < before.packets;
            (*reason, if anew { *now } else { less(*now, before) })
        };
        let first = |(now, before): (u64, u64)| now.checked_sub(before).unwrap_or(now);
        let [software, hardware] = self.first;
        Standing {
            dropped: self.dropped.iter().map(dropped).collect(),
            first: [first((software, before.first[0])), first((hardware, before.first[1]))],
        }
    }
}

/// What was counted, and who waits for the next reading.
#[derive(Debug, Default)]
pub(super) struct Counting {
    read: Option<Instant>,
    under_way: bool,
    waiting: Vec<oneshot::Sender<()>>,
    /// Held while netdevs are read and until that is told, so that no reading is overtaken by an
    /// older one.
    reader: Arc<Mutex<CounterReader>>,
    /// Whether all netdevs are being read.
    reading_netdevs: bool,
    /// Whether some are.
    reading_taken_over: bool,
    /// Netdevs that are to be read next, since ports came to them or left them.
    taken_over: BTreeSet<Ifindex>,
    /// When what has moved was told last, and what had moved then.
    told: Option<(Instant, BTreeMap<Id, Traffic>)>,
    /// What each port's representor has received and sent, over all that it has had.
    moved: Books,
    /// What of that went through the host's CPU, where drivers tell.
    software: Books,
    /// Whether the reading that is under way reads rules, too: before all that was found is adopted
    /// nobody knows whose they are.
    reading_rules: bool,
    /// Whether rules were read. What they had counted before is nobody's, or was carried over.
    begun: bool,
    /// Who stands on which netdev, as of the reading of rules that is under way or was the last.
    stand: BTreeMap<Ifindex, Id>,
    /// Whose the rules at each netdev's hook were when these were read.
    at_hooks: BTreeMap<Ifindex, Id>,
    /// What the rules of each port that stand now have counted.
    standing: BTreeMap<Id, Standing>,
    /// What rules had counted when they were read last; of those that had counted anything.
    seen: BTreeMap<Hook, HashMap<Place, Count>>,
    /// What each port's frames were dropped for.
    dropped: BTreeMap<Id, BTreeMap<&'static str, Counters>>,
    /// Where each port's frames met their first flow, in the order of [`HIT_BY`].
    first: BTreeMap<Id, [u64; 2]>,
    /// The most that a rule of each adapter has, in the order of [`CEILINGS`].
    highest: BTreeMap<Id, [u32; 3]>,
}

impl Counting {
    /// What an earlier daemon had counted for the ports that there are.
    pub(super) fn carried(path: &Path, is_there: impl Fn(&Id) -> bool) -> Counting {
        let ports = carried::take(path).unwrap_or_else(|error| {
            warn!(path = %path.display(), %error, "counts of ports begin anew");
            BTreeMap::new()
        });
        let mut counting = Counting::default();
        for (id, port) in ports.into_iter().filter(|(id, _)| is_there(id)) {
            for (books, carried) in
                [(&mut counting.moved, port.moved), (&mut counting.software, port.software)]
            {
                if let Some((moved, stood)) = carried {
                    books.carry(&id, carried::traffic(moved), carried::stood(stood));
                }
            }
            let mut standing = Standing { first: port.first.1, ..Standing::default() };
            let dropped = counting.dropped.entry(id.clone()).or_default();
            for (reason, (sum, stood)) in port.dropped {
                if let Some(reason) = DROP_REASONS.into_iter().find(|known| **known == reason) {
                    dropped.insert(reason, carried::counters(sum));
                    standing.dropped.insert(reason, carried::counters(stood));
                }
            }
            counting.first.insert(id.clone(), port.first.0);
            counting.standing.insert(id.clone(), standing);
            if let Some(ifindex) = port.hook.and_then(Ifindex::new) {
                counting.at_hooks.insert(ifindex, id);
            }
        }
        counting
    }

    /// Writes what the next daemon should go on from.
    pub(super) fn carry(&self, path: &Path) {
        let mut ports: BTreeMap<Id, CarriedPort> = BTreeMap::new();
        let of = |books: &Books, port: &Id, moved: &Traffic| {
            let stood = books.stands(port);
            let stood = stood.map(|(ifindex, counted)| (ifindex.get(), carried::ways(counted)));
            Some((carried::ways(*moved), stood))
        };
        for (port, moved) in self.moved.ports() {
            ports.entry(port.clone()).or_default().moved = of(&self.moved, port, moved);
        }
        for (port, moved) in self.software.ports() {
            ports.entry(port.clone()).or_default().software = of(&self.software, port, moved);
        }
        for (port, dropped) in &self.dropped {
            let standing = self.standing.get(port).cloned().unwrap_or_default();
            let carried = ports.entry(port.clone()).or_default();
            for (reason, sum) in dropped {
                let stood = standing.dropped.get(reason).copied().unwrap_or_default();
                let counts = (carried::count(*sum), carried::count(stood));
                carried.dropped.insert((*reason).to_owned(), counts);
            }
            let first = self.first.get(port).copied().unwrap_or_default();
            carried.first = (first, standing.first);
        }
        for (ifindex, port) in &self.at_hooks {
            ports.entry(port.clone()).or_default().hook = Some(ifindex.get());
        }
        if let Err(error) = carried::write(path, ports) {
            warn!(path = %path.display(), %error, "counts of ports will begin anew");
        }
    }

    /// Books what a port's rules have counted: `standing` in all, `more` since they were read last.
    fn book_rules(
        &mut self,
        hook: Hook,
        port: Option<Id>,
        is_first: bool,
        standing: Standing,
        mut more: Standing,
    ) {
        let Some(ifindex) = hook.ifindex() else { return };
        let Some(port) = port else {
            self.at_hooks.remove(&ifindex);
            return;
        };
        let former = self.at_hooks.insert(ifindex, port.clone());
        let before = self.standing.insert(port.clone(), standing.clone());
        let is_same = former.as_ref() == Some(&port);
        if is_first {
            let before = before.filter(|_| is_same);
            more = before.map(|before| standing.since(&before)).unwrap_or_default();
        } else if former.is_some() && !is_same {
            // Of two ports, and nobody knows how much of which.
            more = Standing::default();
        }
        let first = self.first.entry(port.clone()).or_default();
        for (sum, more) in first.iter_mut().zip(more.first) {
            *sum += more;
        }
        let dropped = self.dropped.entry(port).or_default();
        for (reason, more) in more.dropped {
            add(dropped.entry(reason).or_default(), more);
        }
    }
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
        let Counting { read, moved, software, dropped, .. } = &self.counting;
        let Traffic { received: sent, sent: received } = moved.ports().get(port)?;
        let dropped = dropped.get(port).into_iter().flatten();
        let dropped = dropped.filter(|(_, count)| count.packets > 0);
        Some(PortStatistics {
            age_ms: u64::try_from(read.as_ref()?.elapsed().as_millis()).unwrap_or(u64::MAX),
            received: frames(*received),
            sent: frames(*sent),
            software: software.ports().get(port).copied().map(port_traffic),
            dropped: dropped
                .map(|(reason, count)| ((*reason).to_owned(), frames(*count)))
                .collect(),
        })
    }

    /// Begins a reading, unless one is under way.
    pub(super) fn read_counters(&mut self) {
        if std::mem::replace(&mut self.counting.under_way, true) {
            return;
        }
        self.counting.highest.clear();
        self.counting.stand = self.stand();
        self.counting.reading_rules = self.converged_once;
        let programs = self.planner.plan().programs.iter().filter(|_| self.converged_once);
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
        let (netdevs, reader) = (self.read_netdevs(), Arc::clone(&self.counting.reader));
        tokio::spawn(async move {
            // First these: who follows them does not wait for all flows.
            netdevs.await;
            let software = reader.lock().await.software().await;
            match software {
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
        let (reader, finished) = (Arc::clone(&self.counting.reader), self.finished_to.clone());
        async move {
            if under_way {
                return;
            }
            let mut reader = reader.lock().await;
            let traffic = reader.all().await;
            let traffic = traffic.inspect_err(|error| warn!(%error, "counters of netdevs")).ok();
            finished.send(Finished::Moved(traffic)).ok();
        }
    }

    /// Reads what netdevs have counted that ports came to or left, unless such are being read.
    fn read_taken_over(&mut self) {
        if self.counting.reading_taken_over || self.counting.taken_over.is_empty() {
            return;
        }
        self.counting.reading_taken_over = true;
        let netdevs = std::mem::take(&mut self.counting.taken_over);
        let (reader, finished) = (Arc::clone(&self.counting.reader), self.finished_to.clone());
        tokio::spawn(async move {
            let mut reader = reader.lock().await;
            let traffic = reader.of(&netdevs).await;
            let traffic = traffic.inspect_err(|error| warn!(%error, "counters of netdevs")).ok();
            finished.send(Finished::MovedAt(traffic.unwrap_or_default())).ok();
        });
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
        let stand = self.stand();
        self.counting.moved.book(traffic, stand);
        self.counting.moved.retain(|port| self.intent.ports.contains_key(port));
        self.tell_traffic();
    }

    /// Books what netdevs have counted that ports came to or left.
    pub(super) fn moved_at(&mut self, traffic: BTreeMap<Ifindex, Traffic>) {
        self.counting.reading_taken_over = false;
        self.read_taken_over();
        let stand = self.stand();
        self.counting.moved.book_some(traffic, &stand);
    }

    /// Books what of it went through the host's CPU, where drivers tell.
    pub(super) fn moved_in_software(&mut self, traffic: BTreeMap<Ifindex, Traffic>) {
        let stand = self.stand();
        self.counting.software.book(traffic, stand);
        self.counting.software.retain(|port| self.intent.ports.contains_key(port));
    }

    /// Who stands on which netdev.
    fn stand(&self) -> BTreeMap<Ifindex, Id> {
        let ports = self.planner.plan().ports.iter();
        ports.filter_map(|(id, plan)| Some((netdev_of(plan)?, id.clone()))).collect()
    }

    /// Ports stand elsewhere since the plan before: what was counted until now is of who stood there.
    pub(super) fn count_places(&mut self, changes: &Changes) {
        if !self.counting.moved.has_begun() && !self.counting.reading_netdevs {
            tokio::spawn(self.read_netdevs());
            return;
        }
        let ports = &self.planner.plan().ports;
        for (id, before) in &changes.ports {
            let before = before.as_ref().and_then(netdev_of);
            let now = ports.get(id).and_then(netdev_of);
            if before != now {
                self.counting.taken_over.extend([before, now].into_iter().flatten());
            }
        }
        self.read_taken_over();
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
        let moved = self.counting.moved.ports().clone();
        if let Some((told, before)) = self.counting.told.replace((now, moved)) {
            let over_ms = now.saturating_duration_since(told).as_millis();
            self.outlets.feed.tell_traffic(&events::Traffic {
                at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
                over_ms: u64::try_from(over_ms).unwrap_or(u64::MAX),
                ports: moved_since(self.counting.moved.ports(), &before),
            });
        }
    }

    /// Books what the rules of a hook have counted.
    pub(super) fn counted(&mut self, id: &Id, hook: Hook, rules: &[TerseRule]) {
        let Some(Program::Flows(program)) = self.planner.plan().programs.get(id) else { return };
        let Some(state) = self.adapters.get(id) else { return };
        let known = self.counting.seen.remove(&hook);
        let is_first = known.is_none() && !self.counting.begun;
        let before = known.unwrap_or_default();
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
            if since.all().packets > 0 && !is_first {
                hits[0] += since.software.packets;
                hits[1] += since.hardware.packets;
                fresh.insert(place, since);
            }
        }
        for (by, hits) in HIT_BY.into_iter().zip(hits) {
            self.metrics.flow_hits.with_label_values(&[id.as_str(), by]).inc_by(hits);
        }
        let port = hook.ifindex().and_then(|ifindex| self.counting.stand.get(&ifindex)).cloned();
        let plan = port.as_ref().and_then(|port| self.planner.plan().ports.get(port));
        let admitted = plan.is_some_and(|port| !port.macs.is_empty());
        let highest = self.counting.highest.entry(id.clone()).or_default();
        let (mut standing, mut more) = (Standing::default(), Standing::default());
        for held in state.flows.installed_at(hook) {
            let rule = &held.rule;
            let place = (rule.chain().get(), rule.prio().get(), held.handle);
            let actions = u32::try_from(rule.actions().len()).unwrap_or(u32::MAX);
            for (highest, now) in highest.iter_mut().zip([actions, place.0, place.1.into()]) {
                *highest = now.max(*highest);
            }
            let Some(count) = now.get(&place) else { continue };
            let Some((_, why)) = program.rules.get_noted(rule.id()) else { continue };
            let reason = reason(why, rule.actions(), admitted);
            for (sums, count) in [(&mut standing, Some(count)), (&mut more, fresh.get(&place))] {
                let Some(count) = count else { continue };
                // A policer hands what it lets pass to the rules behind it.
                if place.0 == 0 && !is_policer(why.purpose) {
                    sums.first[0] += count.software.packets;
                    sums.first[1] += count.hardware.packets;
                }
                let Some(reason) = reason else { continue };
                let dropped = match rule.actions() {
                    [Action::Police(_), ..] => Counters { packets: count.drops.into(), bytes: 0 },
                    _ => count.all(),
                };
                add(sums.dropped.entry(reason).or_default(), dropped);
            }
        }
        for (by, frames) in HIT_BY.into_iter().zip(more.first) {
            self.metrics.adapter_frames.with_label_values(&[id.as_str(), by]).inc_by(frames);
        }
        self.counting.seen.insert(hook, now);
        self.counting.book_rules(hook, port, is_first, standing, more);
    }

    /// Tells what was counted.
    pub(super) fn counted_all(&mut self) {
        let Owner { counting, metrics, intent, planner, .. } = self;
        counting.under_way = false;
        counting.begun |= counting.reading_rules;
        counting.read = Some(Instant::now());
        counting.dropped.retain(|port, _| intent.ports.contains_key(port));
        counting.first.retain(|port, _| intent.ports.contains_key(port));
        counting.standing.retain(|port, _| intent.ports.contains_key(port));
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
            if let Some(Traffic { received: sent, sent: received }) = counting.moved.ports().get(id)
            {
                received_bytes.push((label(), number(received.bytes)));
                received_packets.push((label(), number(received.packets)));
                sent_bytes.push((label(), number(sent.bytes)));
                sent_packets.push((label(), number(sent.packets)));
            }
            if let Some(Traffic { received: sent, sent: received }) =
                counting.software.ports().get(id)
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
        if self.converged_once && !self.counting.begun {
            // It had begun before rules were adopted.
            self.read_counters();
        }
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
