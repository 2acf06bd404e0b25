//! The one owner of World, Intent and Installed.
//!
//! In: whole snapshots from the observers, calls from the API, outcomes from `apply`. Out: jobs for
//! `apply`, answers for the API. Everything else talks to it over bounded channels; nothing else
//! holds state that matters. Its loop drains what has come, plans once, and hands out at most one
//! job an adapter.

mod books;
mod carried;
mod conditions;
mod counting;
mod drift;
mod dry_run;
mod eswitch;
mod explain;
mod flows;
#[cfg(test)]
mod history;
mod ledger;
mod measuring;
mod mtu;
mod news;
mod probe;
mod rates;
mod serve;
mod settings;
mod status;
mod trace;
mod waiting;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use api::{
    error::{ApiError, ResourceKind, ResourceRef},
    events::{Feed, NewsKind},
    resources::{EswitchMode, PortFunction},
    server::Precondition,
    types::Id,
};
use nix::errno::Errno;
use tc_flows::{Hook, Ifindex, Op, TerseRule};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::{
    conditions::ConditionLog,
    counting::Counting,
    eswitch::{EswitchPolicies, Orders},
    flows::{AdapterFlows, Drift},
    measuring::{Plugs, answer, answer_of},
    probe::Probe,
    rates::RateWrites,
    settings::VfWrites,
    waiting::{Waiter, Waits},
};
pub(crate) use self::{eswitch::EswitchPolicy, serve::DaemonHandle};
use crate::{
    apply::{
        flows::{FlowDone, FlowJob},
        vdpa::{self, VdpaChange},
    },
    capability::Capabilities,
    eswitch::{EswitchHandle, KernelRefusal, VfSetting, vdpa::Vdpa},
    intent::{Change, Claims, Effect, Intent, OrderStage},
    metrics::{Answer, Metrics},
    observe::{
        flows::FlowNews,
        guest::{GuestMessage, GuestUpdate, GuestWatch},
        host::{HostMessage, HostWatch, Traffic},
    },
    plan::{
        AdapterPolicies, Dirty, Planner, Program,
        switchdev::{FlowDelta, FlowProgram, MAX_NETWORK_NUMBER},
        vdpa::VdpaProgram,
    },
    store::{Remembered, Store, StoreError},
    world::{Connection, GuestView, LeafRate, NetdevView, World},
};

/// How long a start waits for guests that were there when the daemon ended, before it plans with
/// what they looked like then.
const START_GRACE: Duration = Duration::from_secs(1);

/// How long a remembered guest may stay silent before it is forgotten.
const REMEMBERED_FOR: Duration = Duration::from_secs(10);

/// How often what was refused is tried again, and what a restart should know is written.
const HOUSEKEEPING: Duration = Duration::from_millis(500);

/// How many housekeepings lie between two tries of what was refused.
const RETRY_EVERY: u32 = 20;

/// Messages taken in one go before planning: more wait, so that a flood cannot put planning off.
const DRAIN: usize = 256;

/// Changes of intent that may wait for the store.
const WRITES: usize = 64;

/// A call from the API.
pub(crate) enum Call {
    /// Reads the owner's state.
    Read(Box<dyn FnOnce(&mut Owner) + Send>),
    /// Changes the intent.
    Write(Box<Write>),
}

/// Changes of the intent that a client asks for, made in one transaction; answered when they are
/// durable.
#[derive(Debug)]
pub(crate) struct Write {
    /// What.
    pub(crate) changes: Vec<Change>,
    /// In which state what each is about must be.
    pub(crate) only_if: Precondition,
    /// Who waits until it is programmed.
    pub(crate) waiter: Option<Waiter>,
    /// What became of it.
    pub(crate) answer: oneshot::Sender<Result<Written, ApiError>>,
}

/// What became of changes that are durable.
#[derive(Debug)]
pub(crate) struct Written {
    /// Of each.
    pub(crate) effects: Vec<Effect>,
    /// The daemon's revision behind the last.
    pub(crate) revision: u64,
}

/// Where the owner's news comes from.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// The host's adapters.
    pub(crate) host: mpsc::Receiver<HostMessage>,
    /// The guests.
    pub(crate) guests: mpsc::Receiver<GuestMessage>,
    /// What became of flows.
    pub(crate) flows: mpsc::UnboundedReceiver<FlowDone>,
    /// Where somebody else changed flows.
    pub(crate) flow_news: mpsc::Receiver<FlowNews>,
}

/// What the owner asks for work.
#[derive(Debug)]
pub(crate) struct Outlets {
    /// The host observer, to look again after settings were written.
    pub(crate) host: HostWatch,
    /// The guest observer, to be told of guests over the API.
    pub(crate) guests: GuestWatch,
    /// Flows.
    pub(crate) flows: mpsc::Sender<FlowJob>,
    /// Representors and VF settings.
    pub(crate) eswitch: EswitchHandle,
    /// Whoever wants to hear what happens.
    pub(crate) feed: Arc<Feed>,
    /// The file that carries the counts of ports to the next daemon.
    pub(crate) counts: PathBuf,
}

/// What the configuration says.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    /// Of adapters, as far as planning needs it.
    pub(crate) adapters: AdapterPolicies,
    /// Of the eswitches of NICs.
    pub(crate) eswitches: EswitchPolicies,
}

/// What a task that the owner started has done.
#[derive(Debug)]
enum Finished {
    OffloadOn(Id, NetdevView, Result<(), KernelRefusal>),
    BroughtUp(Id, NetdevView, Result<(), KernelRefusal>),
    VfGathered(Id, u16),
    VfWritten(Id, u16, Vec<(VfSetting, Result<(), KernelRefusal>)>),
    VdpaChanged(Id, VdpaChange, Result<(), KernelRefusal>),
    Reshaped(Id, Result<(), KernelRefusal>),
    Probed(Id, Ifindex, Result<Capabilities, String>),
    RateSet(Id, u16, LeafRate, Result<(), KernelRefusal>),
    Counted(Id, Hook, Vec<TerseRule>),
    CountedAll,
    Moved(Option<BTreeMap<Ifindex, Traffic>>),
    /// Some netdevs were read.
    MovedAt(BTreeMap<Ifindex, Traffic>),
    MovedInSoftware(BTreeMap<Ifindex, Traffic>),
}

/// A guest event whose flows are not acknowledged yet.
#[derive(Debug, Clone)]
struct Awaiting {
    port: Id,
    event_read: Instant,
}

/// What the last events did to a port.
#[derive(Debug, Clone, Copy, Default)]
struct PortTiming {
    programmed: u64,
    last: Option<Duration>,
}

/// One adapter's side of the owner's state.
#[derive(Debug, Default)]
struct AdapterState {
    flows: AdapterFlows,
    /// Events whose ops are not in a job yet.
    awaiting: Vec<Awaiting>,
    /// Events whose ops are in the job under way.
    in_job: Vec<Awaiting>,
    /// Whether the program's netdevs are others than when this was looked at last.
    netdevs_touched: bool,
    /// How far each representor is on its way into use.
    readiness: BTreeMap<Ifindex, Readiness>,
    /// Representors that carry a port and are not up yet.
    to_bring_up: BTreeSet<NetdevView>,
    /// What a representor lacks, in the kernel's words.
    problems: BTreeMap<Ifindex, String>,
    /// Representors of which it is not known whether they were made ready.
    unanswered: BTreeSet<Ifindex>,
    settings: VfWrites,
    rates: RateWrites,
    probe: Probe,
    /// What was asked for each vDPA device last, by name.
    vdpa_told: BTreeMap<String, VdpaChange>,
    /// What the kernel refused of it.
    vdpa_refused: BTreeMap<String, KernelRefusal>,
    vdpa_under_way: BTreeSet<String>,
    /// Flows in hardware when it refused one for want of room last.
    full_at: Option<u64>,
}

/// How far a representor is on its way into use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readiness {
    /// Its TC offload is being switched on: flows wait for it, or they would miss the hardware.
    OffloadAsked,
    /// Flows may come.
    Offloadable,
    /// It is being brought up.
    UpAsked,
    /// It carries frames.
    Up,
}

/// Of what the conditions may be others than when they were stamped last.
#[derive(Debug, Default)]
struct Stale {
    all: bool,
    ports: BTreeSet<Id>,
    guests: BTreeSet<Id>,
}

impl Stale {
    /// The intent has changed. What else is planned otherwise because of it, planning says.
    fn change(&mut self, change: &Change) {
        match change {
            Change::Port(id, _) => {
                self.ports.insert(id.clone());
            }
            // The conditions of ports tell of their networks too.
            Change::Network(..)
            | Change::Guest(..)
            | Change::Eswitch(..)
            | Change::Everything(_) => self.all = true,
        }
    }
}

/// The store, which one blocking task at a time may hold.
struct StoreSlot {
    store: Option<Box<dyn Store>>,
    writes: VecDeque<Write>,
    returned_to: mpsc::UnboundedSender<StoreDone>,
    returned: mpsc::UnboundedReceiver<StoreDone>,
    /// What was remembered last, to write only changes.
    remembered: (Claims, BTreeMap<Id, GuestView>),
}

/// What a blocking store task brings back.
struct StoreDone {
    store: Box<dyn Store>,
    commit: Option<Committed>,
}

/// Changes of intent that went through the store, or did not.
struct Committed {
    intent: Box<Intent>,
    changes: Vec<Change>,
    result: Result<Vec<Effect>, StoreError>,
    waiter: Option<Waiter>,
    answer: oneshot::Sender<Result<Written, ApiError>>,
}

/// The one owner of the daemon's state.
pub(crate) struct Owner {
    world: World,
    intent: Intent,
    planner: Planner,
    /// What of World and Intent the planner has not seen.
    dirty: Dirty,
    policies: AdapterPolicies,
    eswitches: EswitchPolicies,
    orders: Orders,
    adapters: BTreeMap<Id, AdapterState>,
    timings: BTreeMap<Id, PortTiming>,
    conditions: ConditionLog,
    /// Guests known from the last run that have not reported in this one.
    unheard: BTreeSet<Id>,
    /// How often each guest went beyond its budgets.
    overruns: BTreeMap<Id, u64>,
    /// Events that no plan has seen yet: the guest, and when the event was read.
    events: Vec<(Id, Instant)>,
    /// Clients that wait until a change is programmed.
    waits: Waits,
    host_seen: bool,
    born: Instant,
    /// What is to be said about what has changed, since conditions were stamped last.
    stale: Stale,
    /// Whether anything has happened since then.
    stirred: bool,
    converged_once: bool,
    /// Nothing is programmed: a client has had everything taken away.
    torn_down: bool,
    store: StoreSlot,
    outlets: Outlets,
    /// The kernel's vDPA side, opened when there is something to do there.
    vdpa: Option<Vdpa>,
    finished_to: mpsc::UnboundedSender<Finished>,
    finished: mpsc::UnboundedReceiver<Finished>,
    counting: Counting,
    /// VFs that guests have enabled and whose flows are not acknowledged yet.
    plugs: Plugs,
    /// Since when something has been on its way without a break.
    unconverged: Option<Instant>,
    metrics: Arc<Metrics>,
}

impl Owner {
    /// An owner with what was stored, that has not looked at anything yet.
    pub(crate) fn new(
        remembered: Remembered,
        store: Box<dyn Store>,
        policies: Policies,
        outlets: Outlets,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (returned_to, returned) = mpsc::unbounded_channel();
        let (finished_to, finished) = mpsc::unbounded_channel();
        let alive = |guest: &GuestView| {
            guest.pid.is_some_and(|pid| PathBuf::from(format!("/proc/{pid}")).exists())
        };
        let mut world = World::default();
        for (id, guest) in &remembered.guests {
            if alive(guest) {
                let connection = Connection::Interrupted {
                    reason: "not heard from since the daemon started".into(),
                };
                world.guests.insert(id.clone(), GuestView { connection, ..guest.clone() });
            }
        }
        let counting =
            Counting::carried(&outlets.counts, |port| remembered.intent.ports.contains_key(port));
        let owner = Owner {
            unheard: world.guests.keys().cloned().collect(),
            overruns: BTreeMap::new(),
            world,
            planner: Planner::holding(remembered.claims.clone()),
            dirty: Dirty::all(),
            intent: remembered.intent,
            policies: policies.adapters,
            eswitches: policies.eswitches,
            orders: Orders::default(),
            adapters: BTreeMap::new(),
            timings: BTreeMap::new(),
            conditions: ConditionLog::default(),
            events: Vec::new(),
            waits: Waits::default(),
            host_seen: false,
            born: Instant::now(),
            stale: Stale::default(),
            stirred: true,
            converged_once: false,
            torn_down: false,
            store: StoreSlot {
                store: Some(store),
                writes: VecDeque::new(),
                returned_to,
                returned,
                remembered: (remembered.claims, remembered.guests),
            },
            outlets,
            vdpa: None,
            finished_to,
            finished,
            counting,
            plugs: Plugs::default(),
            unconverged: None,
            metrics,
        };
        owner.tell_guest_watch();
        owner
    }

    /// Works until `cancel`. Flows stay as they are: a restart must not cut guests off.
    pub(crate) async fn run(
        mut self,
        mut inbox: Inbox,
        mut calls: mpsc::Receiver<Call>,
        cancel: CancellationToken,
    ) {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ticks: u32 = 0;
        loop {
            let before = ticks;
            tokio::select! {
                () = cancel.cancelled() => break,
                Some(done) = inbox.flows.recv() => self.flows_done(done),
                Some(news) = inbox.flow_news.recv() => self.flow_news(&news),
                Some(message) = inbox.guests.recv() => self.guest_news(message),
                Some(message) = inbox.host.recv() => self.host_news(message),
                Some(done) = self.finished.recv() => self.task_finished(done),
                Some(done) = self.store.returned.recv() => self.store_returned(done),
                Some(call) = calls.recv(), if self.store.writes.len() < WRITES => self.call(call),
                _ = housekeeping.tick() => {
                    ticks = ticks.wrapping_add(1);
                    self.keep_house(ticks);
                }
            }
            self.stirred |= ticks == before;
            self.measure_queues(&inbox, &calls);
            for _ in 0..DRAIN {
                if let Ok(message) = inbox.guests.try_recv() {
                    self.guest_news(message);
                } else if let Ok(message) = inbox.host.try_recv() {
                    self.host_news(message);
                } else {
                    break;
                }
                self.stirred = true;
            }
            self.answer_waits();
            self.converge();
            self.measure_plugs();
            self.answer_waits();
        }
        self.remember_now();
        self.counting.carry(&self.outlets.counts);
        info!("stopped; flows and VF settings stay as they are");
    }

    // ------------------------------------------------------------ news

    fn host_news(&mut self, mut message: HostMessage) {
        for (id, view) in &mut message.adapters {
            let before = self.world.adapters.get(id);
            if before.is_none() {
                self.metrics.begin_adapter(id.as_str());
            }
            let state = self.adapters.entry(id.clone()).or_default();
            view.capabilities = state.probe.capabilities_of(view);
            state.settings.seen(before, view);
            state.rates.seen(before, view);
            if before.is_none_or(|before| before.vdpa != view.vdpa) {
                state.vdpa_told.clear();
            }
        }
        let before = std::mem::replace(&mut self.world.adapters, message.adapters);
        let now = &self.world.adapters;
        let changed = now.iter().filter(|(id, view)| before.get(*id) != Some(view));
        self.dirty.adapters.extend(changed.map(|(id, _)| id.clone()));
        self.dirty.adapters.extend(before.into_keys().filter(|id| !now.contains_key(id)));
        self.host_seen = true;
        self.stale.all = true;
    }

    fn flow_news(&mut self, news: &FlowNews) {
        self.metrics.netlink_overruns.inc_by(news.overruns);
        for state in self.adapters.values_mut() {
            if news.everywhere {
                state.flows.suspect_all();
            }
            for (hook, by) in &news.hooks {
                state.flows.suspect(*hook, *by);
            }
        }
    }

    fn guest_news(&mut self, message: GuestMessage) {
        match message {
            GuestMessage::Forgotten(id) => {
                self.unheard.remove(&id);
                self.overruns.remove(&id);
                self.stop_counting_guest(&id);
                self.forget_guest(&id);
            }
            GuestMessage::Update(update) => self.guest_update(*update),
        }
    }

    fn forget_guest(&mut self, id: &Id) {
        if self.world.guests.remove(id).is_some() {
            self.dirty.guests.insert(id.clone());
            self.stale.all = true;
        }
    }

    fn guest_update(&mut self, update: GuestUpdate) {
        let GuestUpdate { guest, view, cause, counts, overruns } = update;
        if !self.world.guests.contains_key(&guest) {
            self.metrics.begin_guest(guest.as_str());
        }
        for (budget, count) in overruns {
            let label = [guest.as_str(), budget];
            self.metrics.guest_overruns.with_label_values(&label).inc_by(count);
            *self.overruns.entry(guest.clone()).or_default() += count;
        }
        for (kind, count) in counts {
            let label = [guest.as_str(), kind];
            self.metrics.guest_events.with_label_values(&label).inc_by(count);
        }
        // Until it has answered once, a guest of the last run is what it was then.
        if view.connection == Connection::Connecting && self.unheard.contains(&guest) {
            return;
        }
        let unheard = self.unheard.remove(&guest);
        let never_read = view.functions.is_empty()
            && !matches!(view.connection, Connection::Connected | Connection::Gone);
        let view = match self.world.guests.get(&guest) {
            Some(last_run) if unheard && never_read && last_run.pid == view.pid => {
                GuestView { connection: view.connection, ..last_run.clone() }
            }
            _ => view,
        };
        let before = self.world.guests.get(&guest);
        if let Connection::Misbehaving { reason } = &view.connection
            && before.map(|before| &before.connection) != Some(&view.connection)
        {
            warn!(%guest, reason, "guest misbehaves");
            self.metrics.errors.with_label_values(&["guest"]).inc();
        }
        if before != Some(&view) {
            if let Some(message) = news::of_guest(before, &view) {
                self.tell(NewsKind::Guest, format!("guests/{guest}"), "Changed", message);
            }
            self.plugs.note(&guest, before, &view, cause.event_read);
            self.world.guests.insert(guest.clone(), view);
            self.dirty.guests.insert(guest.clone());
            self.stale.guests.insert(guest.clone());
            self.events.extend(cause.event_read.map(|event_read| (guest, event_read)));
        }
    }

    fn call(&mut self, call: Call) {
        match call {
            Call::Read(read) => {
                self.converge();
                read(self);
            }
            Call::Write(write) => {
                self.store.writes.push_back(*write);
                self.next_write();
            }
        }
    }

    // ------------------------------------------------------------ convergence

    /// Plans if something changed, and hands out what there is to do.
    fn converge(&mut self) {
        if !self.may_act() {
            return;
        }
        let began = (!self.dirty.is_empty()).then(Instant::now);
        if began.is_some() {
            self.read_ahead();
            self.replan();
        }
        self.waits_up_to_date();
        // Steps that an eswitch is taken through come to their end in any case.
        let mut busy = self.drive_eswitches();
        if self.torn_down {
            return;
        }
        let planner = std::mem::take(&mut self.planner);
        for (id, program) in &planner.plan().programs {
            // Nothing of what its VFs have outlives the steps.
            if self.orders.are_taken_at(id) {
                continue;
            }
            busy |= match program {
                Program::Flows(program) => self.drive_flows(id, program),
                Program::VfSettings(program) => self.drive_settings(id, program),
            };
        }
        for (id, program) in &planner.plan().vdpa {
            busy |= self.drive_vdpa(id, program);
        }
        for (id, program) in &planner.plan().rates {
            busy |= self.drive_rates(id, program);
        }
        self.probe_adapters();
        self.planner = planner;
        self.unconverged = busy.then(|| self.unconverged.unwrap_or_else(Instant::now));
        if let Some(began) = began {
            self.metrics.reconcile.observe(began.elapsed().as_secs_f64());
        }
        if !busy && !self.converged_once {
            self.converged_once = true;
            // What comes from now on is counted.
            self.read_counters();
            info!(after = ?self.born.elapsed(), "converged");
        }
    }

    /// Before the host and the guests of the last run have been seen, or had time to show
    /// themselves, nothing is changed: what is installed is the best guess.
    fn may_act(&mut self) -> bool {
        self.host_seen && (self.unheard.is_empty() || self.born.elapsed() >= START_GRACE)
    }

    /// Has the hooks of new adapters read while their programs are being planned.
    fn read_ahead(&mut self) {
        if self.torn_down {
            return;
        }
        let is_planned =
            |id: &Id| matches!(self.planner.plan().programs.get(id), Some(Program::Flows(_)));
        let new: Vec<(Id, FlowProgram)> = self
            .world
            .adapters
            .iter()
            .filter(|(id, view)| {
                matches!(view.mode, Some(EswitchMode::Switchdev | EswitchMode::Software))
                    && !is_planned(id)
                    && !self.orders.are_taken_at(id)
            })
            .map(|(id, view)| (id.clone(), FlowProgram::without_rules(view)))
            .collect();
        for (id, program) in new {
            let state = self.adapters.entry(id.clone()).or_default();
            state.flows.planned(&program, &FlowDelta { netdevs: true, ..FlowDelta::default() });
            state.netdevs_touched = true;
            self.drive_flows(&id, &program);
        }
    }

    fn replan(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        let changes = self.planner.update(&self.world, &self.intent, &self.policies, &dirty);
        self.tell_of_refused_addresses(&changes);
        self.count_refusals(&changes);
        let plan = self.planner.plan();
        for (id, state) in &mut self.adapters {
            match (plan.programs.get(id), changes.flows.get(id)) {
                (Some(Program::Flows(program)), Some(delta)) => {
                    state.flows.planned(program, delta);
                    state.netdevs_touched |= delta.netdevs;
                }
                (Some(Program::Flows(_)), None) => {}
                _ => state.flows.withdraw(),
            }
        }
        self.waits_planned(&changes);
        self.count_places(&changes);
        let plan = self.planner.plan();
        for (id, before) in &changes.ports {
            self.stale.ports.insert(id.clone());
            let Some(port) = plan.ports.get(id) else {
                self.timings.remove(id);
                continue;
            };
            debug!(port = %id, placed = port.place.is_ok(), macs = ?port.macs, "port planned");
            for refused in &port.refused {
                if before.as_ref().is_none_or(|before| !before.refused.contains(refused)) {
                    warn!(port = %id, mac = %refused.mac, reason = refused.reason, "address refused");
                }
            }
            if let Some(event_read) = self.event_of(id)
                && let Some(place) = [Some(port), before.as_ref()]
                    .into_iter()
                    .flatten()
                    .find_map(|p| p.place.as_ref().ok())
                && let Some(state) = self.adapters.get_mut(&place.adapter)
            {
                state.awaiting.push(Awaiting { port: id.clone(), event_read });
            }
        }
        self.events.clear();
    }

    /// When the first unplanned event of the port's guest was read.
    fn event_of(&self, port: &Id) -> Option<Instant> {
        let PortFunction::GuestVf { guest, .. } = &self.intent.ports.get(port)?.spec.function
        else {
            return None;
        };
        self.events.iter().filter(|(id, _)| id == guest).map(|(_, read)| *read).min()
    }

    /// Hands out the next flow job of an adapter; says whether there is work under way.
    fn drive_flows(&mut self, id: &Id, program: &FlowProgram) -> bool {
        let hardware = self
            .world
            .adapters
            .get(id)
            .is_some_and(|adapter| adapter.mode == Some(EswitchMode::Switchdev));
        let state = self.adapters.entry(id.clone()).or_default();
        if std::mem::take(&mut state.netdevs_touched) {
            let gone = state.readiness.iter().filter(|(ifindex, readiness)| {
                !program.netdevs.contains_key(ifindex)
                    && matches!(readiness, Readiness::UpAsked | Readiness::Up)
            });
            let gone = gone.count();
            if gone > 0 {
                warn!(adapter = %id, netdevs = gone,
                    "netdevs of ports are gone; the flows that led there go, too");
                let count = self.metrics.drift.with_label_values(&[id.as_str(), "netdev"]);
                count.inc_by(gone as u64);
            }
            state.readiness.retain(|ifindex, _| program.netdevs.contains_key(ifindex));
            state.problems.retain(|ifindex, _| program.netdevs.contains_key(ifindex));
            for (ifindex, netdev) in &program.netdevs {
                state.readiness.entry(*ifindex).or_insert_with(|| {
                    if !hardware {
                        return Readiness::Offloadable;
                    }
                    let (eswitch, netdev) = (self.outlets.eswitch.clone(), netdev.clone());
                    let (id, finished) = (id.clone(), self.finished_to.clone());
                    tokio::spawn(async move {
                        let result = eswitch.switch_tc_offload_on(&netdev).await;
                        finished.send(Finished::OffloadOn(id, netdev, result)).ok();
                    });
                    Readiness::OffloadAsked
                });
            }
            let down = program.in_use.iter().filter(|netdev| {
                matches!(
                    state.readiness.get(&netdev.ifindex),
                    Some(Readiness::OffloadAsked | Readiness::Offloadable)
                )
            });
            state.to_bring_up = down.cloned().collect();
        }
        let asked = state.readiness.iter();
        let asked = asked.filter(|(_, readiness)| **readiness == Readiness::OffloadAsked);
        let held: BTreeSet<Ifindex> = asked.map(|(ifindex, _)| *ifindex).collect();
        if let Some(job) = state.flows.next_job(id, program, &held, Instant::now()) {
            for gap in &job.gaps {
                warn!(adapter = %id, %gap, "flows change with a gap");
            }
            if !job.ops.is_empty() && !job.more {
                state.in_job.append(&mut state.awaiting);
            }
            if self.outlets.flows.try_send(job).is_err() {
                error!(adapter = %id, "the flow thread is gone");
                self.metrics.errors.with_label_values(&["flows"]).inc();
            }
        } else if !state.flows.under_way() {
            state.awaiting.clear();
        }
        for netdev in std::mem::take(&mut state.to_bring_up) {
            let settled = state.flows.settled(netdev.ifindex);
            match state.readiness.get_mut(&netdev.ifindex) {
                Some(readiness @ Readiness::Offloadable) if settled => {
                    *readiness = Readiness::UpAsked;
                    let eswitch = self.outlets.eswitch.clone();
                    let (id, finished) = (id.clone(), self.finished_to.clone());
                    tokio::spawn(async move {
                        let result = eswitch.prepare_representor(&netdev).await;
                        finished.send(Finished::BroughtUp(id, netdev, result)).ok();
                    });
                }
                _ => {
                    state.to_bring_up.insert(netdev);
                }
            }
        }
        state.flows.under_way() || !held.is_empty()
    }

    fn flows_done(&mut self, mut done: FlowDone) {
        let Some(state) = self.adapters.get_mut(&done.adapter) else { return };
        let tally = match self.planner.plan().programs.get(&done.adapter) {
            Some(Program::Flows(program)) => state.flows.done(program, &mut done),
            _ => state.flows.done(&FlowProgram::default(), &mut done),
        };
        let id = &done.adapter;
        let answered = if done.last { std::mem::take(&mut state.in_job) } else { Vec::new() };
        for awaiting in answered {
            let took = done.finished.saturating_duration_since(awaiting.event_read);
            self.metrics.event_to_programmed.observe(took.as_secs_f64());
            let timing = self.timings.entry(awaiting.port).or_default();
            timing.programmed += 1;
            timing.last = Some(took);
        }
        let Some(state) = self.adapters.get_mut(&done.adapter) else { return };
        for (op, outcome) in &done.outcomes {
            let operation = match op {
                Op::Add { .. } => "flow_add",
                Op::Replace { .. } => "flow_replace",
                Op::Delete { .. } => "flow_delete",
            };
            let answer = answer_of(outcome);
            self.metrics.tally(operation, answer);
            if answer == Answer::Refused(Errno::ENOSPC as i32) {
                state.full_at = Some(state.flows.ledger().all().in_hw);
            }
        }
        for refusal in &tally.refused {
            warn!(adapter = %id, refusal, "the kernel refused a flow");
            self.metrics.errors.with_label_values(&["flows"]).inc();
        }
        for problem in &tally.unusable {
            warn!(adapter = %id, problem, "a hook cannot be used");
        }
        for (hook, drift, by) in &tally.drift {
            let Drift { deleted, changed, added } = drift;
            let ifindex = hook.ifindex().map(Ifindex::get);
            warn!(adapter = %id, ifindex, deleted, changed, added, netlink_port = by,
                "flows were changed by somebody else; repairing");
            for (kind, count) in drift.by_kind() {
                self.metrics.drift.with_label_values(&[id.as_str(), kind]).inc_by(count);
            }
        }
        if tally.unknown > 0 {
            warn!(adapter = %id, flows = tally.unknown, "outcome unknown, reading again");
        }
        if tally.adopted > 0 {
            info!(adapter = %id, flows = tally.adopted, "adopted");
        }
        let adapter = done.adapter.clone();
        self.tell_of_flows(&adapter, &tally);
    }

    /// Makes and removes vDPA devices, one change of each at a time; says whether one is under way.
    fn drive_vdpa(&mut self, id: &Id, program: &VdpaProgram) -> bool {
        let view = self.world.adapters.get(id).and_then(|adapter| adapter.vdpa.as_ref());
        let Some(view) = view else { return false };
        let state = self.adapters.entry(id.clone()).or_default();
        let changes = vdpa::changes(id, view, program);
        state.vdpa_refused.retain(|name, _| changes.iter().any(|change| change.name() == name));
        if changes.is_empty() {
            return !state.vdpa_under_way.is_empty();
        }
        let kernel = match self.vdpa.take().map_or_else(Vdpa::open, Ok) {
            Ok(kernel) => self.vdpa.insert(kernel),
            Err(error) => {
                error!(adapter = %id, %error, "vDPA devices");
                self.metrics.errors.with_label_values(&["vdpa"]).inc();
                return false;
            }
        };
        for change in changes {
            if state.vdpa_told.get(change.name()) == Some(&change)
                || !state.vdpa_under_way.insert(change.name().to_owned())
            {
                continue;
            }
            state.vdpa_told.insert(change.name().to_owned(), change.clone());
            let (kernel, id, finished) = (kernel.clone(), id.clone(), self.finished_to.clone());
            tokio::spawn(async move {
                let result = match &change {
                    VdpaChange::Create(device) => kernel.create(device).await,
                    VdpaChange::Delete(name) => kernel.delete_unused(name).await,
                };
                finished.send(Finished::VdpaChanged(id, change, result)).ok();
            });
        }
        !state.vdpa_under_way.is_empty()
    }

    fn task_finished(&mut self, finished: Finished) {
        let counts = matches!(
            finished,
            Finished::Counted(..)
                | Finished::CountedAll
                | Finished::Moved(_)
                | Finished::MovedAt(_)
                | Finished::MovedInSoftware(_)
        );
        self.stale.all |= !counts;
        match finished {
            Finished::Counted(id, hook, rules) => self.counted(&id, hook, &rules),
            Finished::CountedAll => self.counted_all(),
            Finished::Moved(traffic) => self.moved(traffic),
            Finished::MovedAt(traffic) => self.moved_at(traffic),
            Finished::MovedInSoftware(traffic) => self.moved_in_software(traffic),
            Finished::OffloadOn(id, netdev, result) => {
                self.representor_step(&id, &netdev, Readiness::Offloadable, result);
            }
            Finished::BroughtUp(id, netdev, result) => {
                self.representor_step(&id, &netdev, Readiness::Up, result);
            }
            Finished::Probed(id, netdev, result) => self.probed(&id, netdev, result),
            Finished::Reshaped(id, result) => self.reshaped(&id, result),
            Finished::RateSet(id, index, rate, result) => {
                self.rate_set(&id, index, rate, result);
            }
            Finished::VfGathered(id, index) => self.vf_gathered(&id, index),
            Finished::VfWritten(id, index, results) => self.vf_written(&id, index, results),
            Finished::VdpaChanged(id, change, result) => {
                let Some(state) = self.adapters.get_mut(&id) else { return };
                state.vdpa_under_way.remove(change.name());
                self.metrics.tally("vdpa", answer(&result));
                match result {
                    Ok(()) => {
                        info!(adapter = %id, ?change, "vDPA device");
                        state.vdpa_refused.remove(change.name());
                    }
                    Err(refusal) => {
                        if refusal.is_lost() {
                            self.vdpa = None;
                        }
                        warn!(adapter = %id, %refusal, "vDPA device");
                        self.metrics.errors.with_label_values(&["vdpa"]).inc();
                        state.vdpa_refused.insert(change.name().to_owned(), refusal);
                    }
                }
                self.outlets.host.look_again();
            }
        }
    }

    fn representor_step(
        &mut self,
        id: &Id,
        netdev: &NetdevView,
        reached: Readiness,
        result: Result<(), KernelRefusal>,
    ) {
        let Some(state) = self.adapters.get_mut(id) else { return };
        let Some(readiness) = state.readiness.get_mut(&netdev.ifindex) else { return };
        // A representor that could not be made ready is used all the same, and says what it lacks.
        *readiness = reached;
        state.flows.reconsider();
        self.metrics.tally("representor", answer(&result));
        if let Err(refusal) = result {
            warn!(adapter = %id, netdev = netdev.name, %refusal, "representor");
            self.metrics.errors.with_label_values(&["representor"]).inc();
            if refusal.is_lost() {
                state.unanswered.insert(netdev.ifindex);
            }
            state.problems.insert(netdev.ifindex, format!("{}: {refusal}", netdev.name));
        }
    }

    /// What time brings: retries, forgetting, remembering.
    fn keep_house(&mut self, tick: u32) {
        if self.born.elapsed() >= REMEMBERED_FOR {
            for guest in std::mem::take(&mut self.unheard) {
                info!(%guest, "no longer there");
                self.forget_guest(&guest);
            }
        }
        self.open_anew();
        for (id, state) in &mut self.adapters {
            for netdev in std::mem::take(&mut state.unanswered) {
                state.readiness.remove(&netdev);
                state.problems.remove(&netdev);
                state.netdevs_touched = true;
            }
            state.flows.audit(Instant::now(), HOUSEKEEPING);
            let retries = tick.is_multiple_of(RETRY_EVERY);
            if let Some(Program::Flows(program)) = self.planner.plan().programs.get(id) {
                state.flows.retry_unanswered(program);
                if retries {
                    state.flows.retry(program);
                }
            }
            if retries {
                state.settings.retry();
                state.rates.retry();
                state.probe.retry();
                state.vdpa_told.clear();
            }
        }
        if tick.is_multiple_of(RETRY_EVERY) {
            self.orders.retry();
        }
        if self.may_act() {
            self.mend_eswitches();
        }
        if std::mem::take(&mut self.stirred) || tick.is_multiple_of(RETRY_EVERY) {
            self.stamp_conditions();
        }
        self.remember_later();
        self.follow_traffic();
    }

    /// Opens the connections anew through which the host is changed, where their sockets broke.
    fn open_anew(&mut self) {
        match self.outlets.eswitch.opened_anew() {
            Ok(None) => {}
            Ok(Some(fresh)) => {
                warn!("a netlink socket broke; opened anew");
                self.outlets.eswitch = fresh;
            }
            Err(error) => warn!(%error, "a netlink socket broke"),
        }
    }

    // ------------------------------------------------------------ teardown

    /// Whether no flow is on its way into the kernel.
    fn at_rest(&self) -> bool {
        self.adapters.values().all(|state| !state.flows.under_way())
    }

    /// Has everything planned from nothing, and every hook read before it is changed: what was
    /// planned, or what was known to be installed, counts no longer.
    fn plan_anew(&mut self, held: Claims) {
        self.planner = Planner::holding(held);
        self.dirty = Dirty::all();
        self.stale.all = true;
        for state in self.adapters.values_mut() {
            state.flows.withdraw();
        }
        self.timings.retain(|id, _| self.intent.ports.contains_key(id));
    }

    /// Flows and TC offload are gone: all of it is to be looked at, and done, anew.
    fn forget_programmed(&mut self) {
        self.plan_anew(self.planner.claims().clone());
        for state in self.adapters.values_mut() {
            state.readiness.clear();
            state.to_bring_up.clear();
        }
    }

    /// Programs nothing from now on, or everything again.
    fn set_torn_down(&mut self, torn_down: bool) {
        self.torn_down = torn_down;
        self.stale.all = true;
    }

    // ------------------------------------------------------------ the store

    /// Starts the next change of intent, if the store is free.
    fn next_write(&mut self) {
        while self.store.store.is_some() {
            let Some(Write { changes, only_if, waiter, answer }) = self.store.writes.pop_front()
            else {
                return;
            };
            if let Err(error) = self.permitted(&changes, &only_if) {
                answer.send(Err(error)).ok();
                continue;
            }
            let Some(mut store) = self.store.store.take() else { return };
            let mut intent = Box::new(self.intent.clone());
            let returned = self.store.returned_to.clone();
            let metrics = Arc::clone(&self.metrics);
            tokio::task::spawn_blocking(move || {
                let began = Instant::now();
                let result = store.commit(&mut intent, &changes);
                metrics.committed(began.elapsed());
                let commit = Some(Committed { intent, changes, result, waiter, answer });
                returned.send(StoreDone { store, commit }).ok();
            });
        }
    }

    /// Whether changes may be made together as things stand.
    fn permitted(&self, changes: &[Change], only_if: &Precondition) -> Result<(), ApiError> {
        let mut open = Vec::new();
        for change in changes {
            match self.intent.subject(change) {
                Some(subject) if !subject.as_wanted => {
                    only_if.check(subject.kind, subject.id, subject.revision)?;
                    open.push(change);
                }
                _ => {}
            }
        }
        let after = match changes {
            [_] => Cow::Borrowed(&self.intent),
            _ => {
                let mut after = self.intent.clone();
                for change in changes {
                    after.apply(change.clone());
                }
                Cow::Owned(after)
            }
        };
        open.into_iter().try_for_each(|change| self.permitted_beside(change, &after))
    }

    /// Whether a change may be made beside the others that `after` has.
    fn permitted_beside(&self, change: &Change, after: &Intent) -> Result<(), ApiError> {
        match change {
            Change::Network(id, None) => {
                let blockers: Vec<ResourceRef> = after
                    .ports
                    .iter()
                    .filter(|(_, port)| port.spec.attachments.iter().any(|a| a.network == *id))
                    .map(|(port, _)| ResourceRef { kind: ResourceKind::Port, id: port.clone() })
                    .collect();
                if blockers.is_empty() {
                    return Ok(());
                }
                Err(ApiError::Conflict {
                    detail: format!("ports are attached to network `{id}`"),
                    blockers,
                    remedy: "detach or delete these ports first".into(),
                })
            }
            Change::Network(id, Some(_))
                if !self.intent.networks.contains_key(id)
                    && after.networks.size() >= MAX_NETWORK_NUMBER as usize =>
            {
                Err(ApiError::Conflict {
                    detail: format!("there are {MAX_NETWORK_NUMBER} networks, which is the most"),
                    blockers: Vec::new(),
                    remedy: "delete networks that no port uses".into(),
                })
            }
            Change::Eswitch(id, Some(order)) if order.stage == OrderStage::Forward => {
                self.order_in_the_way(id).map_or(Ok(()), Err)
            }
            _ => Ok(()),
        }
    }

    fn store_returned(&mut self, done: StoreDone) {
        self.store.store = Some(done.store);
        if let Some(Committed { intent, changes, result, waiter, answer }) = done.commit {
            let result = match result {
                Ok(effects) => {
                    self.intent = *intent;
                    if let Some(waiter) = waiter {
                        self.waits.begin(waiter, &changes, &effects);
                    }
                    for (change, effect) in changes.iter().zip(&effects) {
                        self.tell_of_change(change, *effect);
                        match (effect, change.claims()) {
                            (Effect::Unchanged, _) => continue,
                            (_, Some(claims)) => self.plan_anew(claims.clone()),
                            (_, None) => self.dirty.change(change),
                        }
                        self.stale.change(change);
                    }
                    let names_guests = |change: &Change| {
                        matches!(change, Change::Guest(..) | Change::Everything(_))
                    };
                    if changes.iter().any(names_guests) {
                        self.tell_guest_watch();
                    }
                    Ok(Written { effects, revision: self.intent.revision })
                }
                Err(error) => {
                    error!(%error, "store");
                    self.metrics.errors.with_label_values(&["store"]).inc();
                    Err(match error.is_full() {
                        true => ApiError::StoreFull(Box::new(error)),
                        false => ApiError::Store(Box::new(error)),
                    })
                }
            };
            answer.send(result).ok();
        }
        self.next_write();
    }

    /// Tells the guest observer which guests the API names.
    fn tell_guest_watch(&self) {
        let named = self
            .intent
            .guests
            .iter()
            .map(|(id, guest)| (id.clone(), guest.spec.qmp.as_ref().map(PathBuf::from)))
            .collect();
        self.outlets.guests.set_api_guests(named);
    }

    /// Writes what a restart should know, off the loop, if it changed and the store is free.
    fn remember_later(&mut self) {
        if !self.may_act() || self.store.store.is_none() || !self.forgetful() {
            return;
        }
        let Some(mut store) = self.store.store.take() else { return };
        let (claims, guests) = self.store.remembered.clone();
        let (intent, returned) = (self.intent.clone(), self.store.returned_to.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = store.remember(&intent, &claims, &guests) {
                warn!(%error, "not remembered");
            }
            returned.send(StoreDone { store, commit: None }).ok();
        });
    }

    /// Writes it now: the daemon ends.
    fn remember_now(&mut self) {
        if self.host_seen
            && self.forgetful()
            && let Some(store) = &mut self.store.store
            && let Err(error) =
                store.remember(&self.intent, self.planner.claims(), &self.world.guests)
        {
            warn!(%error, "not remembered");
        }
    }

    /// Notes what is to be remembered; whether that differs from what was.
    fn forgetful(&mut self) -> bool {
        let claims = self.planner.claims().clone();
        // The next look at the same claims is short: copies know each other.
        let other_claims =
            std::mem::replace(&mut self.store.remembered.0, claims.clone()) != claims;
        let other_guests = self.store.remembered.1 != self.world.guests;
        if other_guests {
            self.store.remembered.1.clone_from(&self.world.guests);
        }
        other_claims || other_guests
    }
}
