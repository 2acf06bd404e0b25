//! One QMP connection as a conversation: what was said, what to ask next, what is known by now.
//!
//! In: lines as they are read, with the time. Out: requests as bytes, the guest's functions, when
//! to come back. No I/O and no clock. An event only ever leads to a question: what the guest looks
//! like comes from answers alone, so that an event seen twice, late or never changes nothing in
//! the end.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    time::Instant,
};

use api::resources::{ControlQueue, MacSource, RxMode, Visibility};

use super::{
    EventCounts,
    backing::{Backends, Backings, Footing},
    pace::{Bucket, Limits},
    qmp::{self, Command, DeviceId, Event, Message, NotQmp, Property},
    replies::{self, NicFilter, PciPlace},
};
use crate::world::{Cause, GuestFunction, PciAddress, RxFilter};

/// What a peer did that QEMU does not do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Offence {
    /// A line is no message.
    #[error("{0}")]
    NotQmp(#[from] NotQmp),
    /// A line is too long.
    #[error(transparent)]
    LineTooLong(#[from] super::lines::LineTooLong),
    /// It sends more than a guest may.
    #[error("it sends more than {per_second} {what} a second")]
    Flood {
        /// Messages or bytes.
        what: &'static str,
        /// The bound.
        per_second: f64,
    },
    /// An answer to a question that was not asked.
    #[error("it answers request {0}, which was not made")]
    UnknownId(u64),
    /// It could not read a request, or refuses to leave negotiation.
    #[error("it refuses a request: {0}")]
    Refused(String),
    /// An answer of another form than the command's.
    #[error("its answer to {command} is none: {source}")]
    Answer {
        /// The command.
        command: &'static str,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// An answer about another device.
    #[error("its answer to query-rx-filter for {0} is about another device")]
    OtherDevice(String),
    /// More functions than a guest may have.
    #[error("it has more than {0} network functions")]
    TooManyFunctions(usize),
}

/// Why an answer is none.
#[derive(Debug)]
enum Wrong {
    Form(serde_json::Error),
    OtherDevice(DeviceId),
    TooMany(usize),
}

impl From<serde_json::Error> for Wrong {
    fn from(error: serde_json::Error) -> Self {
        Wrong::Form(error)
    }
}

impl Wrong {
    fn into_offence(self, command: &'static str) -> Offence {
        match self {
            Wrong::Form(source) => Offence::Answer { command, source },
            Wrong::OtherDevice(device) => Offence::OtherDevice(device.as_str().to_owned()),
            Wrong::TooMany(limit) => Offence::TooManyFunctions(limit),
        }
    }
}

/// A look that is asked for now and then.
#[derive(Debug, Default)]
struct Look {
    /// When it is to be taken; absent while nobody wants it.
    due: Option<Instant>,
    /// The first event that it will answer.
    event_read: Option<Instant>,
    /// When it was taken last.
    asked: Option<Instant>,
    /// Whether it was ever answered.
    answered: bool,
}

/// Run states that QEMU leaves without an event (`RunState`, qapi/run-state.json): of a guest that
/// left, STOP tells when it stands still, and nothing when it has arrived.
const SILENT_ENDS: [&str; 4] = ["finish-migrate", "inmigrate", "restore-vm", "save-vm"];

/// Filters of functions whose drivers are attached that one poll of a quiet guest looks at, those
/// first that were looked at longest ago. What happens to them has an event, other than a reset of
/// the function or the end of its driver: those are seen with the next poll, or where a guest has
/// more functions than this, after as many polls as it takes to come round.
const QUIET_FILTERS: usize = 8;

/// What a function stands on never changes while QEMU runs, hot-plugging aside, which has an event:
/// it is looked at again with one audit in this many.
const BACKINGS_EVERY: u32 = 5;

/// The earlier of two times, where there are any.
fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl Look {
    fn want(&mut self, at: Instant, event_read: Option<Instant>) {
        self.due = earlier(self.due, Some(at));
        self.event_read = earlier(self.event_read, event_read);
    }

    /// When it may be taken, given the time between two.
    fn ready(&self, interval: std::time::Duration) -> Option<Instant> {
        Some(self.due?.max(self.asked.map_or(self.due?, |asked| asked + interval)))
    }

    fn take(&mut self, now: Instant) -> Option<Instant> {
        self.due = None;
        self.asked = Some(now);
        self.event_read.take()
    }
}

/// A fact about a device that never changes while the device is there.
#[derive(Debug, Default)]
enum Fact {
    #[default]
    Unknown,
    Asked,
    Known(Option<String>),
}

impl Fact {
    fn known(&self) -> Option<Option<&str>> {
        match self {
            Self::Known(text) => Some(text.as_deref()),
            _ => None,
        }
    }
}

#[derive(Debug)]
struct Function {
    pf: Fact,
    netdev: Fact,
    /// It has a name but is no device below `/machine/peripheral`: a NIC without an id.
    anonymous: bool,
    filter: Option<RxFilter>,
    look: Look,
    looks: Bucket,
    /// It is to be looked at once more when its guest has settled: a driver that goes says so
    /// before the function is reset.
    unsettled: bool,
}

impl Function {
    fn new(limits: &Limits, now: Instant) -> Self {
        Function {
            pf: Fact::Unknown,
            netdev: Fact::Unknown,
            anonymous: false,
            filter: None,
            look: Look::default(),
            looks: Bucket::new(limits.filter_looks, now),
            unsettled: false,
        }
    }

    /// Whether its filter is to be looked at now.
    fn is_due(&mut self, now: Instant) -> bool {
        !self.anonymous && self.look.due.is_some_and(|at| at <= now) && self.looks.has(1.0, now)
    }

    /// When its filter is to be looked at, if at all.
    fn ready(&self) -> Option<Instant> {
        let due = self.look.due.filter(|_| !self.anonymous)?;
        Some(due.max(self.looks.next()))
    }

    fn has_unasked_fact(&self) -> bool {
        !self.anonymous
            && matches!((&self.pf, &self.netdev), (Fact::Unknown, _) | (_, Fact::Unknown))
    }

    fn is_known(&self) -> bool {
        self.anonymous || (self.pf.known().is_some() && self.netdev.known().is_some())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Greeting,
    Negotiating,
    Open,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    command: Command,
    sent: Instant,
    event_read: Option<Instant>,
}

/// What can be seen of a function and how much that is, from what serves its control queue, what
/// its vDPA device was given, and what QEMU shows. A device is promiscuous until its driver says
/// otherwise, which takes a receive mode. Where QEMU does not see the control queue, the address is
/// the one that the device was given.
fn seen(footing: &Footing, filter: Option<&RxFilter>) -> (Option<RxFilter>, Visibility) {
    let hidden = footing.control_queue == ControlQueue::Hidden;
    let given = footing.config.and_then(|config| config.mac).filter(|_| hidden);
    let mut filter = filter.cloned();
    if let (Some(filter), Some(mac)) = (&mut filter, given) {
        filter.main_mac = mac;
    }
    let visibility = Visibility {
        control_queue: footing.control_queue,
        rx_mode: match (footing.config.and_then(|config| config.sets_rx_modes()), &filter) {
            (Some(true), _) => RxMode::Negotiated,
            (Some(false), _) => RxMode::NotNegotiated,
            (None, Some(filter)) if !hidden && !filter.promiscuous => RxMode::Negotiated,
            (None, _) => RxMode::Unknown,
        },
        mac: match &filter {
            Some(_) if !hidden => MacSource::RxFilter,
            _ if given.is_some() => MacSource::VdpaConfig,
            _ => MacSource::None,
        },
    };
    (filter, visibility)
}

/// One connection's state.
#[derive(Debug)]
pub(crate) struct Conversation {
    limits: Limits,
    stage: Stage,
    began: Instant,
    next_id: u64,
    waiting: VecDeque<Waiting>,
    requests: Bucket,
    messages: Bucket,
    bytes: Bucket,
    hasher: RandomState,
    /// Of what each question was answered last, to pass over an equal answer unread. Empty when
    /// something else than an answer to that question changed what it is about.
    digests: HashMap<Command, u64>,

    status: Look,
    pci: Look,
    filters: Look,
    /// Another query-pci, a while after an event.
    settle: Look,
    poll: Option<Instant>,
    audit: Option<Instant>,
    audits: u32,
    /// When something was heard last that was not an answer that says nothing new.
    stirred: Instant,

    qemu: Option<String>,
    run_state: Option<String>,
    places: BTreeMap<String, PciPlace>,
    functions: BTreeMap<DeviceId, Function>,

    counts: EventCounts,
    overruns: EventCounts,
    changed: bool,
    changed_by: Option<Instant>,
    backings_wanted: bool,
    /// Grows whenever [`Self::backends`] may be different.
    backends_revision: u64,
}

impl Conversation {
    /// A connection that was made now.
    pub(crate) fn new(limits: Limits, now: Instant) -> Self {
        Conversation {
            stage: Stage::Greeting,
            began: now,
            next_id: 1,
            waiting: VecDeque::new(),
            requests: Bucket::new(limits.requests, now),
            messages: Bucket::new(limits.messages, now),
            bytes: Bucket::new(limits.bytes, now),
            hasher: RandomState::new(),
            digests: HashMap::new(),
            status: Look::default(),
            pci: Look::default(),
            filters: Look::default(),
            settle: Look::default(),
            poll: None,
            audit: None,
            audits: 0,
            stirred: now,
            qemu: None,
            run_state: None,
            places: BTreeMap::new(),
            functions: BTreeMap::new(),
            counts: EventCounts::new(),
            overruns: EventCounts::new(),
            changed: false,
            changed_by: None,
            backings_wanted: false,
            backends_revision: 0,
            limits,
        }
    }

    // ------------------------------------------------------------ what is known

    /// QEMU's version.
    pub(crate) fn qemu(&self) -> Option<&str> {
        self.qemu.as_deref()
    }

    /// QEMU's run state.
    pub(crate) fn run_state(&self) -> Option<&str> {
        self.run_state.as_deref()
    }

    /// Whether everything was asked and answered at least once.
    pub(crate) fn is_inventoried(&self) -> bool {
        self.stage == Stage::Open
            && self.status.answered
            && self.pci.answered
            && self.filters.answered
            && self.functions.values().all(Function::is_known)
    }

    fn known(&self) -> impl Iterator<Item = (&DeviceId, &Function)> {
        self.functions.iter().filter(|(_, function)| !function.anonymous && function.is_known())
    }

    /// The backend of each function that is known by now.
    pub(crate) fn backends(&self) -> Backends {
        self.known()
            .map(|(id, function)| {
                (id.clone(), function.netdev.known().flatten().map(str::to_owned))
            })
            .collect()
    }

    /// A number that differs whenever [`Self::backends`] does.
    pub(crate) fn backends_revision(&self) -> u64 {
        self.backends_revision
    }

    /// The index of each VF among those of its PF: their order on the bus.
    fn indexes(&self) -> BTreeMap<&DeviceId, u16> {
        let mut vfs: BTreeMap<&str, Vec<(PciAddress, &DeviceId)>> = BTreeMap::new();
        for (id, function) in self.known() {
            if let Some(pf) = function.pf.known().flatten()
                && let Some(address) = self.places.get(id.as_str()).and_then(|p| p.address)
            {
                vfs.entry(pf).or_default().push((address, id));
            }
        }
        vfs.values_mut()
            .flat_map(|vfs| {
                vfs.sort_unstable();
                (0u16..).zip(vfs.iter()).map(|(index, (_, id))| (*id, index))
            })
            .collect()
    }

    /// The functions whose backings are known by now.
    pub(crate) fn functions(&self, backings: &Backings) -> BTreeMap<String, GuestFunction> {
        let indexes = self.indexes();
        self.known()
            .filter_map(|(id, function)| {
                let place = self.places.get(id.as_str());
                let footing = backings.get(id)?;
                let (filter, visibility) = seen(footing, function.filter.as_ref());
                let function = GuestFunction {
                    pf: function.pf.known().flatten().map(str::to_owned),
                    index: indexes.get(id).copied(),
                    pci: place.and_then(|place| place.address),
                    enabled: place.is_some_and(|place| place.enabled),
                    filter,
                    backing: footing.backing.clone(),
                    source: footing.source,
                    visibility,
                };
                Some((id.as_str().to_owned(), function))
            })
            .collect()
    }

    /// Whether something known changed since the last call, and by which event.
    pub(crate) fn take_change(&mut self) -> Option<Cause> {
        let cause = Cause { event_read: self.changed_by.take() };
        std::mem::take(&mut self.changed).then_some(cause)
    }

    /// Something outside of the conversation changed what [`Self::functions`] shows.
    pub(crate) fn note_change(&mut self) {
        self.change(None);
    }

    /// The events counted since the last call.
    pub(crate) fn take_counts(&mut self) -> EventCounts {
        std::mem::take(&mut self.counts)
    }

    /// What went beyond the guest's budgets since the last call.
    pub(crate) fn take_overruns(&mut self) -> EventCounts {
        std::mem::take(&mut self.overruns)
    }

    /// Whether the backings are to be looked at again, though the functions are the same.
    pub(crate) fn take_backings_wanted(&mut self) -> bool {
        std::mem::take(&mut self.backings_wanted)
    }

    /// Since when an answer is waited for, and to what.
    pub(crate) fn waits(&self) -> Option<(Instant, &'static str)> {
        match self.stage {
            Stage::Greeting => Some((self.began, "the connection (no greeting)")),
            _ => self.waiting.front().map(|waiting| (waiting.sent, waiting.command.name())),
        }
    }

    // ------------------------------------------------------------ what is heard

    /// Takes one line, whose last byte was read at `now`.
    pub(crate) fn hear(&mut self, line: &[u8], now: Instant) -> Result<(), Offence> {
        if !self.messages.take(1.0, now) {
            *self.overruns.entry("messages").or_default() += 1;
            return Err(Offence::Flood { what: "messages", per_second: self.limits.messages.1 });
        }
        #[expect(clippy::cast_precision_loss, reason = "lines are far shorter than 2^52 bytes")]
        let length = line.len() as f64;
        if !self.bytes.take(length, now) {
            *self.overruns.entry("bytes").or_default() += 1;
            return Err(Offence::Flood { what: "bytes", per_second: self.limits.bytes.1 });
        }
        if line.is_empty() {
            return Ok(());
        }
        let digest =
            qmp::answer_apart_from_id(line).map(|(answer, id)| (id, self.hasher.hash_one(answer)));
        if let Some((id, digest)) = digest
            && self.says_nothing_new(id, digest)
        {
            return Ok(());
        }
        match qmp::decode(line)? {
            Message::Greeting { version } => self.greeted(version),
            Message::Event(event) => self.happened(&event, now),
            Message::Return { id, value } => {
                let waiting = self.answered(id)?;
                let command = waiting.command.clone();
                self.learn(waiting, value.get(), now)
                    .map_err(|wrong| wrong.into_offence(command.name()))?;
                if let Some((_, digest)) = digest {
                    self.digests.insert(command, digest);
                }
            }
            Message::Error { id, class, description } => {
                let Some(id) = id else { return Err(Offence::Refused(description)) };
                let waiting = self.answered(id)?;
                self.refused(waiting, &class, description, now)?;
            }
        }
        Ok(())
    }

    /// Takes an answer that is the same as the last one to the same question.
    fn says_nothing_new(&mut self, id: u64, digest: u64) -> bool {
        let Some(at) = self.waiting.iter().position(|waiting| waiting.id == id) else {
            return false;
        };
        let same = self
            .waiting
            .get(at)
            .is_some_and(|waiting| self.digests.get(&waiting.command) == Some(&digest));
        if same {
            self.waiting.remove(at);
        }
        same
    }

    fn greeted(&mut self, version: String) {
        if self.stage == Stage::Greeting {
            self.qemu = Some(version);
            self.stage = Stage::Negotiating;
        }
    }

    fn answered(&mut self, id: u64) -> Result<Waiting, Offence> {
        let at = self.waiting.iter().position(|waiting| waiting.id == id);
        at.and_then(|at| self.waiting.remove(at)).ok_or(Offence::UnknownId(id))
    }

    fn happened(&mut self, event: &Event, now: Instant) {
        *self.counts.entry(event.kind()).or_default() += 1;
        self.stirred = now;
        match event {
            Event::RxFilterChanged { device } => {
                let function = device
                    .as_deref()
                    .and_then(DeviceId::new)
                    .and_then(|id| self.functions.get_mut(&id));
                match (function, device) {
                    (Some(function), _) => {
                        if !function.looks.has(1.0, now) {
                            *self.overruns.entry("filter_looks").or_default() += 1;
                        }
                        function.look.want(now, Some(now));
                        function.unsettled = true;
                    }
                    // A device that is not known yet.
                    (None, Some(_)) => self.filters.want(now, Some(now)),
                    // A device without an id is no function.
                    (None, None) => {}
                }
            }
            Event::DeviceDeleted { device } => {
                if let Some(id) = device.as_deref().and_then(DeviceId::new)
                    && self.functions.remove(&id).is_some()
                {
                    self.digests.clear();
                    self.backends_revision += 1;
                    self.change(Some(now));
                }
                self.look_at_everything(now, Some(now));
                self.backings_wanted = true;
            }
            Event::LookAgain(_) => self.look_at_everything(now, Some(now)),
            Event::Unrelated(_) => {}
        }
        self.pci.want(now, Some(now));
        self.settle.want(now + self.limits.settle, Some(now));
    }

    fn look_at_everything(&mut self, now: Instant, event_read: Option<Instant>) {
        self.status.want(now, event_read);
        self.pci.want(now, event_read);
        self.filters.want(now, event_read);
    }

    fn change(&mut self, event_read: Option<Instant>) {
        self.changed = true;
        self.changed_by = earlier(self.changed_by, event_read);
    }

    fn learn(&mut self, waiting: Waiting, value: &str, now: Instant) -> Result<(), Wrong> {
        let Waiting { command, event_read, .. } = waiting;
        match command {
            Command::NegotiateCapabilities => self.open(now),
            Command::QueryStatus => {
                self.status.answered = true;
                let run_state = Some(replies::run_state(value)?);
                if self.run_state != run_state {
                    self.run_state = run_state;
                    self.change(event_read);
                }
            }
            Command::QueryPci => {
                self.pci.answered = true;
                self.place(replies::pci_places(value)?, event_read, now);
            }
            Command::QueryRxFilters => {
                self.filters.answered = true;
                self.enumerate(replies::rx_filters(value)?, event_read, now)?;
            }
            Command::QueryRxFilter(device) => {
                // The list of all NICs says the same of this one in other words.
                self.digests.remove(&Command::QueryRxFilters);
                let Some(function) = self.functions.get_mut(&device) else { return Ok(()) };
                let mut filters = replies::rx_filters(value)?.into_iter();
                let (Some(NicFilter { name, filter }), None) = (filters.next(), filters.next())
                else {
                    return Err(Wrong::OtherDevice(device));
                };
                if name != device.as_str() {
                    return Err(Wrong::OtherDevice(device));
                }
                if function.filter != filter {
                    function.filter = filter;
                    self.change(event_read);
                }
            }
            Command::QomGet(device, property) => {
                let text = replies::text_property(value)?;
                self.state_fact(&device, property, text);
            }
        }
        Ok(())
    }

    fn open(&mut self, now: Instant) {
        self.stage = Stage::Open;
        self.poll = Some(self.limits.on_the_beat(now + self.limits.poll));
        self.audit = Some(now + self.limits.audit);
        self.look_at_everything(now, None);
    }

    /// Takes the places of PCI devices. What was enabled or disabled has no event of its own, and
    /// its filter changed with it.
    fn place(
        &mut self,
        places: BTreeMap<String, PciPlace>,
        event_read: Option<Instant>,
        now: Instant,
    ) {
        let before = std::mem::replace(&mut self.places, places);
        let enabled = |places: &BTreeMap<String, PciPlace>, id: &str| {
            places.get(id).is_some_and(|place| place.enabled)
        };
        let mut changed = false;
        for (id, function) in &mut self.functions {
            if enabled(&before, id.as_str()) != enabled(&self.places, id.as_str()) {
                function.look.want(now, event_read);
                changed = true;
            }
        }
        if changed {
            self.stirred = now;
            self.change(event_read);
        }
        let nics = |places: &BTreeMap<String, PciPlace>| -> BTreeSet<String> {
            places.iter().filter(|(_, place)| place.network).map(|(id, _)| id.clone()).collect()
        };
        if !before.is_empty() && nics(&before) != nics(&self.places) {
            self.filters.want(now, event_read);
        }
    }

    /// Takes the list of all NICs that have receive filters.
    fn enumerate(
        &mut self,
        filters: Vec<NicFilter>,
        event_read: Option<Instant>,
        now: Instant,
    ) -> Result<(), Wrong> {
        let mut seen = BTreeSet::new();
        let mut changed = false;
        for NicFilter { name, filter } in filters {
            let Some(id) = DeviceId::new(&name) else { continue };
            if !self.functions.contains_key(&id) && self.functions.len() >= self.limits.functions {
                return Err(Wrong::TooMany(self.limits.functions));
            }
            let function = self
                .functions
                .entry(id.clone())
                .or_insert_with(|| Function::new(&self.limits, now));
            if function.filter != filter {
                function.filter = filter;
                self.digests.remove(&Command::QueryRxFilter(id.clone()));
                changed = true;
            }
            seen.insert(id);
        }
        let before = self.functions.len();
        self.functions.retain(|id, _| seen.contains(id));
        self.digests.retain(|command, _| match command {
            Command::QueryRxFilter(id) | Command::QomGet(id, _) => seen.contains(id),
            _ => true,
        });
        if self.functions.len() != before {
            self.backends_revision += 1;
            changed = true;
        }
        if changed {
            self.change(event_read);
        }
        Ok(())
    }

    fn state_fact(&mut self, device: &DeviceId, property: Property, text: Option<String>) {
        let Some(function) = self.functions.get_mut(device) else { return };
        let fact = match property {
            Property::SriovPf => &mut function.pf,
            Property::Netdev => &mut function.netdev,
        };
        *fact = Fact::Known(text);
        self.backends_revision += 1;
        self.change(None);
    }

    fn refused(
        &mut self,
        waiting: Waiting,
        class: &str,
        description: String,
        now: Instant,
    ) -> Result<(), Offence> {
        match waiting.command {
            Command::NegotiateCapabilities => return Err(Offence::Refused(description)),
            // A machine without PCI, or a QEMU without the command: it has none of these.
            Command::QueryStatus => self.status.answered = true,
            Command::QueryPci => self.pci.answered = true,
            Command::QueryRxFilters => {
                self.filters.answered = true;
                self.digests.clear();
                if !std::mem::take(&mut self.functions).is_empty() {
                    self.backends_revision += 1;
                    self.change(waiting.event_read);
                }
            }
            Command::QueryRxFilter(device) => {
                self.digests.clear();
                if let Some(function) = self.functions.get_mut(&device)
                    && function.filter.take().is_some()
                {
                    self.change(waiting.event_read);
                }
                self.filters.want(now, waiting.event_read);
            }
            Command::QomGet(device, property) => {
                self.state_fact(&device, property, None);
                if class == "DeviceNotFound"
                    && let Some(function) = self.functions.get_mut(&device)
                {
                    function.anonymous = true;
                }
            }
        }
        Ok(())
    }

    // ------------------------------------------------------------ what is asked

    /// Appends the requests that are due, as many as may wait for answers at a time.
    pub(crate) fn ask(&mut self, now: Instant, out: &mut Vec<u8>) {
        self.fall_due(now);
        while self.waiting.len() < self.limits.window {
            let Some((command, event_read)) = self.next_request(now) else { break };
            let id = self.next_id;
            self.next_id += 1;
            command.encode(id, out);
            self.waiting.push_back(Waiting { id, command, sent: now, event_read });
        }
    }

    /// Turns what nothing has caused into looks.
    fn fall_due(&mut self, now: Instant) {
        if self.stage != Stage::Open {
            return;
        }
        if self.audit.is_some_and(|at| at <= now) {
            self.audit = Some(now + self.limits.audit);
            self.audits = self.audits.wrapping_add(1);
            self.look_at_everything(now, None);
            self.backings_wanted |= self.audits.is_multiple_of(BACKINGS_EVERY);
        }
        if self.poll.is_some_and(|at| at <= now) {
            self.poll = Some(self.limits.on_the_beat(now + self.limits.poll));
            self.pci.want(now, None);
            if self.run_state.as_deref().is_some_and(|state| SILENT_ENDS.contains(&state)) {
                self.status.want(now, None);
            }
            let quiet = now.saturating_duration_since(self.stirred) >= self.limits.quiet;
            let (places, mut attached) = (&self.places, Vec::new());
            let enabled = |id: &DeviceId| places.get(id.as_str()).is_some_and(|p| p.enabled);
            for (_, function) in self.functions.iter_mut().filter(|(id, _)| enabled(id)) {
                match function.filter {
                    // A driver that attaches says nothing; one that is attached has its event armed.
                    None => function.look.want(now, None),
                    Some(_) => attached.push(&mut function.look),
                }
            }
            attached.sort_by_key(|look| look.asked);
            let most = if quiet { QUIET_FILTERS } else { usize::MAX };
            attached.into_iter().take(most).for_each(|look| look.want(now, None));
        }
        if self.settle.due.is_some_and(|at| at <= now) {
            let event_read = self.settle.take(now);
            self.pci.want(now, event_read);
            for function in self.functions.values_mut() {
                if std::mem::take(&mut function.unsettled) {
                    function.look.want(now, None);
                }
            }
        }
    }

    fn next_request(&mut self, now: Instant) -> Option<(Command, Option<Instant>)> {
        match self.stage {
            Stage::Greeting => return None,
            Stage::Negotiating => {
                return self.waiting.is_empty().then_some((Command::NegotiateCapabilities, None));
            }
            Stage::Open => {}
        }
        if !self.requests.has(1.0, now) {
            return None;
        }
        let limits = &self.limits;
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        // The function that has waited longest, so that a busy one delays no other.
        let function = self
            .functions
            .iter_mut()
            .filter_map(|(id, function)| function.is_due(now).then_some((id, function)))
            .min_by_key(|(_, function)| function.look.asked);
        let request = if let Some((id, function)) = function {
            function.looks.take(1.0, now);
            Some((Command::QueryRxFilter(id.clone()), function.look.take(now)))
        } else if is_due(self.filters.ready(limits.look_interval)) {
            Some((Command::QueryRxFilters, self.filters.take(now)))
        } else if is_due(self.pci.ready(limits.look_interval)) {
            Some((Command::QueryPci, self.pci.take(now)))
        } else if is_due(self.status.ready(limits.look_interval)) {
            Some((Command::QueryStatus, self.status.take(now)))
        } else {
            self.next_fact().map(|command| (command, None))
        };
        request.inspect(|_| {
            self.requests.take(1.0, now);
        })
    }

    fn next_fact(&mut self) -> Option<Command> {
        self.functions.iter_mut().filter(|(_, f)| !f.anonymous).find_map(|(id, function)| {
            let (fact, property) = match (&function.pf, &function.netdev) {
                (Fact::Unknown, _) => (&mut function.pf, Property::SriovPf),
                (_, Fact::Unknown) => (&mut function.netdev, Property::Netdev),
                _ => return None,
            };
            *fact = Fact::Asked;
            Some(Command::QomGet(id.clone(), property))
        })
    }

    /// When [`Self::ask`] may have more to ask though nothing is heard.
    pub(crate) fn next_ask(&self) -> Option<Instant> {
        if self.stage != Stage::Open || self.waiting.len() >= self.limits.window {
            return None;
        }
        let limits = &self.limits;
        let functions = self.functions.values().filter_map(Function::ready);
        let looks = [&self.filters, &self.pci, &self.status];
        let looks = looks.into_iter().filter_map(|look| look.ready(limits.look_interval));
        let facts = self.functions.values().any(Function::has_unasked_fact).then_some(self.began);
        let wanted = functions.chain(looks).chain(facts).min();
        let wanted = wanted.map(|at| at.max(self.requests.next()));
        [wanted, self.poll, self.audit, self.settle.due].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests;
