//! Classes of frames that a set of rules cannot tell apart, and what becomes of a class.
//!
//! In come entries of a hook and a choice of which changes are made; out goes what happens to all
//! frames of a class alike, or the question by which the class must first be split. A class is a
//! set of bits that its frames have, without some others. Bits are those that keys look at, each
//! taken as free of the others even where no real frame has both (an ARP opcode in an IPv6
//! packet): so there may be classes without a frame, never a frame without a class.
//!
//! Tags are followed exactly through push, pop and modify. Whether a policer finds that a frame
//! exceeds its rate is one bit more of the frame, the same for equal policers. Any other action that
//! is not known here may change anything, but the same for the same frame: what is looked at
//! afterwards is another bit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use super::program::Program;
use crate::action::{Action, Control, Police};
use crate::ident::{BlockId, ChainId, Direction, ETH_P_ALL, Ifindex, Prio, VlanId, VlanTpid};
use crate::key::{Field, KEY_MAX, KeyId};
use crate::walk::GOTOS_MAX;

/// Something of the original frame that keys look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    /// The ethertype behind this many original tags.
    EtherType(usize),
    /// The identifier of the original tag behind this many others.
    Vid(usize),
    /// Its priority.
    Pcp(usize),
    /// A key that tag changes leave alone, after these unknown actions.
    Key(KeyId, Rc<[Action]>),
    /// Another key that tag changes change, in a frame with these tags.
    OfTags(KeyId, Tags),
    /// Whether a frame with this past exceeds what this action lets pass.
    Exceeds(Action, Tags),
    /// Whether a key that is not compared bit by bit has this value under this mask.
    Whole(KeyId, Rc<[u8]>, Tags),
}

/// A tag as an action wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Written {
    tpid: u16,
    vid: u16,
    pcp: Pcp,
}

/// The priority of a written tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Pcp {
    /// This one.
    Is(u8),
    /// That of the original tag behind this many others.
    Of(usize),
}

/// What a key looks at in a tag.
#[derive(Clone, Copy)]
enum TagPart {
    /// What stands where the tag begins: its ethertype, or that of the payload behind all tags.
    EtherType,
    Vid,
    Pcp,
}

impl TagPart {
    fn of_original(self, tag: usize) -> Seen {
        match self {
            Self::EtherType => Seen::EtherType(tag),
            Self::Vid => Seen::Vid(tag),
            Self::Pcp => Seen::Pcp(tag),
        }
    }

    /// The value, or the original tag that has it.
    fn of_written(self, tag: Written) -> Result<u16, usize> {
        match (self, tag.pcp) {
            (Self::EtherType, _) => Ok(tag.tpid),
            (Self::Vid, _) => Ok(tag.vid),
            (Self::Pcp, Pcp::Is(pcp)) => Ok(pcp.into()),
            (Self::Pcp, Pcp::Of(original)) => Err(original),
        }
    }
}

/// Tags and their past.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Tags {
    /// Written ones, the outer one last.
    written: Vec<Written>,
    /// How many original ones are gone.
    gone: usize,
    /// Actions with unknown effect on what keys see, so far.
    unknown: Rc<[Action]>,
    /// Other actions that leave something on the frame.
    noted: Rc<[Action]>,
}

/// Who gets a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Receiver {
    /// What leaves through this interface.
    Egress(Ifindex),
    /// This interface, as if it had come in there.
    Ingress(Ifindex),
    /// All interfaces of a block.
    Block(Direction, BlockId),
}

/// Bits with their values: place, value, mask; by place.
pub(super) type Cube = Vec<(usize, u128, u128)>;

/// Frames that have the bits of one cube and not all those of any of the others.
#[derive(Clone, Debug)]
pub(super) struct Class {
    with: Cube,
    without: Vec<Rc<Cube>>,
}

/// What becomes of a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fate {
    copies: Vec<(Receiver, Tags)>,
    /// The frame after each action with unknown effect.
    unknown: Vec<Tags>,
    to_host: Option<Tags>,
}

impl Fate {
    /// Whether what becomes of the class is nothing but what becomes of it in one of these: every
    /// copy that both make is made, none is made that neither makes or more often than either does,
    /// and the host gets it as in one of the two.
    pub(super) fn is_between(&self, old: &Fate, new: &Fate) -> bool {
        let times = |fate: &Fate, copy| fate.copies.iter().filter(|other| *other == copy).count();
        let mut all = self.copies.iter().chain(&old.copies).chain(&new.copies);
        let copies = all.all(|copy| {
            let (before, after) = (times(old, copy), times(new, copy));
            (before.min(after)..=before.max(after)).contains(&times(self, copy))
        });
        copies
            && (self.to_host == old.to_host || self.to_host == new.to_host)
            && (self.unknown == old.unknown || self.unknown == new.unknown)
    }
}

/// A walk of a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Passage {
    /// Several where it depends on which of two rules of one prio the kernel asks first.
    pub(super) fates: Vec<Fate>,
    /// Whether it met a rule that changes.
    pub(super) met_change: bool,
}

/// How far a class has come.
#[derive(Clone, Debug)]
struct Place {
    chain: ChainId,
    /// Only rules after this prio are asked.
    after: Option<Prio>,
    tags: Tags,
    gotos: usize,
}

impl Default for Place {
    fn default() -> Place {
        Place { chain: ChainId::ZERO, after: None, tags: Tags::default(), gotos: 0 }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Undecided {
    /// The class must be split by these bits.
    Split(Rc<Cube>),
    /// Too many questions were asked.
    Budget,
}

/// What is true of a program as a whole.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Whether an action may have an effect on other keys than those of tags.
    rewrites: bool,
    /// Priorities that actions write into tags.
    pcps: BTreeSet<u8>,
    /// The entry that leads to a chain, `None` where there are several.
    leads_to: HashMap<ChainId, Option<usize>>,
}

impl Facts {
    pub(super) fn of(program: &Program<'_>) -> Facts {
        let mut facts = Facts { pcps: BTreeSet::from([0]), ..Facts::default() };
        for (at, entry) in program.entries.iter().enumerate() {
            for rule in [entry.old, entry.new].into_iter().flatten() {
                for to in rule.goto_targets() {
                    let one = facts.leads_to.entry(to).or_insert(Some(at));
                    *one = one.filter(|one| *one == at);
                }
                for action in rule.actions() {
                    match meaning(action) {
                        Meaning::Unknown => facts.rewrites = true,
                        Meaning::Push(Written { pcp: Pcp::Is(pcp), .. })
                        | Meaning::Modify(.., Some(pcp)) => drop(facts.pcps.insert(pcp)),
                        _ => {}
                    }
                }
            }
        }
        facts
    }
}

/// What the entries of a program ask of frames.
pub(super) struct Space<'p, 'r> {
    program: &'p Program<'r>,
    facts: &'p Facts,
    places: BTreeMap<Seen, usize>,
    asked: HashMap<(usize, Tags), Option<Rc<Cube>>>,
    /// By chain, the entries that matter.
    relevant: HashMap<ChainId, Rc<[usize]>>,
    regions: Vec<Cube>,
    /// How many questions may still be asked.
    pub(super) budget: usize,
}

/// Regions up to which entries are left out that touch none of them.
const REGIONS_MAX: usize = 64;

/// Whether tag actions change what this key sees.
const fn is_of_tags(id: KeyId) -> bool {
    matches!(
        id,
        KeyId::NumOfVlans
            | KeyId::VlanId
            | KeyId::VlanPrio
            | KeyId::VlanEthType
            | KeyId::CvlanId
            | KeyId::CvlanPrio
            | KeyId::CvlanEthType
    )
}

impl<'p, 'r> Space<'p, 'r> {
    pub(super) fn new(program: &'p Program<'r>, facts: &'p Facts, budget: usize) -> Space<'p, 'r> {
        Space {
            program,
            facts,
            places: BTreeMap::new(),
            asked: HashMap::new(),
            relevant: HashMap::new(),
            regions: Vec::new(),
            budget,
        }
    }

    fn place(&mut self, seen: Seen) -> usize {
        let next = self.places.len();
        *self.places.entry(seen).or_insert(next)
    }

    /// Bits that a frame must have on its arrival to be matched by this entry where it stands.
    pub(super) fn region(&mut self, at: usize) -> Cube {
        let mut cube = self.own_region(at);
        let mut at = at;
        // On the only way there it must have been matched, too.
        for _ in 0..GOTOS_MAX {
            let chain = self.program.entries[at].id().chain();
            if chain == ChainId::ZERO {
                break;
            }
            let Some(Some(before)) = self.facts.leads_to.get(&chain).copied() else { break };
            at = before;
            let before = self.own_region(at);
            if compatible(&cube, &before) {
                cube = joined(&cube, &before);
            }
        }
        cube
    }

    fn own_region(&mut self, at: usize) -> Cube {
        let id = self.program.entries[at].id();
        if id.chain() == ChainId::ZERO && !self.facts.leads_to.contains_key(&ChainId::ZERO) {
            return self.cube(at, &Tags::default()).unwrap_or_default();
        }
        let mut cube = Cube::new();
        if !self.facts.rewrites {
            for field in id.matching().fields().iter().filter(|field| !is_of_tags(field.id)) {
                self.ask(&field, &Tags::default(), &mut cube);
            }
        }
        cube.sort_unstable();
        cube
    }

    /// The frames of these regions, each in one class.
    pub(super) fn classes(&mut self, regions: &[Cube]) -> Vec<Class> {
        self.regions = regions.to_vec();
        self.relevant.clear();
        let mut classes: Vec<Class> = Vec::new();
        let mut before: Vec<Rc<Cube>> = Vec::new();
        for region in regions {
            let mut class = Some(Class { with: region.clone(), without: Vec::new() });
            for other in &before {
                class = class.and_then(|class| class.less(other));
            }
            classes.extend(class);
            before.push(Rc::new(region.clone()));
        }
        classes
    }

    /// What an entry asks of the original frame when it comes with these tags; `None` where it
    /// never matches.
    fn question(&mut self, at: usize, tags: &Tags) -> Option<Rc<Cube>> {
        if let Some(known) = self.asked.get(&(at, tags.clone())) {
            return known.clone();
        }
        let cube = self.cube(at, tags).map(Rc::new);
        self.asked.insert((at, tags.clone()), cube.clone());
        cube
    }

    fn cube(&mut self, at: usize, tags: &Tags) -> Option<Cube> {
        let matching = self.program.entries[at].id().matching();
        let mut cube = Cube::new();
        if matching.protocol() != ETH_P_ALL {
            self.ask_tag(
                tags,
                0,
                TagPart::EtherType,
                (matching.protocol().into(), 0xffff),
                &mut cube,
            )?;
        }
        for field in matching.fields().iter() {
            let bits = (number(field.value), number(field.mask));
            let mut ask_tag = |depth, part| self.ask_tag(tags, depth, part, bits, &mut cube);
            match field.id {
                // What unknown actions leave of the tags is not known.
                _ if !tags.unknown.is_empty() => self.ask(&field, tags, &mut cube),
                KeyId::VlanEthType => ask_tag(1, TagPart::EtherType)?,
                KeyId::CvlanEthType => ask_tag(2, TagPart::EtherType)?,
                KeyId::VlanId => ask_tag(0, TagPart::Vid)?,
                KeyId::CvlanId => ask_tag(1, TagPart::Vid)?,
                KeyId::VlanPrio => ask_tag(0, TagPart::Pcp)?,
                KeyId::CvlanPrio => ask_tag(1, TagPart::Pcp)?,
                _ => self.ask(&field, tags, &mut cube),
            }
        }
        cube.sort_unstable();
        Some(cube)
    }

    /// Asks for a key that is neither the outer tag's identifier nor what follows it.
    fn ask(&mut self, field: &Field<'_>, tags: &Tags, cube: &mut Cube) {
        let of_tags = is_of_tags(field.id);
        if field.id.is_range() || field.id.spec().len == 0 {
            let tags = if of_tags {
                tags.clone()
            } else {
                Tags { unknown: tags.unknown.clone(), ..Tags::default() }
            };
            let asked = field.value.iter().chain(field.mask).copied().collect();
            let place = self.place(Seen::Whole(field.id, asked, tags));
            push(cube, place, 1, 1);
        } else {
            let seen = if of_tags {
                Seen::OfTags(field.id, tags.clone())
            } else {
                Seen::Key(field.id, tags.unknown.clone())
            };
            let place = self.place(seen);
            push(cube, place, number(field.value), number(field.mask));
        }
    }

    /// Asks for something of the tag behind this many others: of one that was written it is known,
    /// of an original one it is to be seen.
    fn ask_tag(
        &mut self,
        tags: &Tags,
        depth: usize,
        part: TagPart,
        (value, mask): (u128, u128),
        cube: &mut Cube,
    ) -> Option<()> {
        let seen = match tags.at(depth) {
            Err(original) => part.of_original(original),
            Ok(tag) => match part.of_written(tag) {
                Ok(known) => return agrees(known.into(), value, mask),
                Err(original) => part.of_original(original),
            },
        };
        push(cube, self.place(seen), value, mask);
        Some(())
    }

    fn answer(&mut self, class: &Class, cube: &Rc<Cube>) -> Result<bool, Undecided> {
        self.budget = self.budget.saturating_sub(1 + class.without.len());
        if self.budget == 0 {
            return Err(Undecided::Budget);
        }
        class.has(cube).ok_or_else(|| Undecided::Split(cube.clone()))
    }

    fn relevant(&mut self, chain: ChainId) -> Rc<[usize]> {
        if let Some(known) = self.relevant.get(&chain) {
            return known.clone();
        }
        let all = self.program.chains.get(&chain).map(|chain| chain.entries.clone());
        let mut entries = Vec::new();
        for at in all.into_iter().flatten() {
            self.budget = self.budget.saturating_sub(1);
            if self.regions.len() <= REGIONS_MAX {
                let region = self.own_region(at);
                if !self.regions.iter().any(|other| compatible(other, &region)) {
                    continue;
                }
            }
            entries.push(at);
        }
        let entries: Rc<[usize]> = entries.into();
        self.relevant.insert(chain, entries.clone());
        entries
    }

    /// What becomes of a class where the changes that `made` names are made.
    pub(super) fn passage(
        &mut self,
        class: &Class,
        made: &impl Fn(usize) -> bool,
    ) -> Result<Passage, Undecided> {
        let fate = Fate { copies: Vec::new(), unknown: Vec::new(), to_host: None };
        let mut passage = Passage { fates: vec![fate], met_change: false };
        self.pass(class, made, Place::default(), &mut passage)?;
        self.settle(class, &mut passage)?;
        Ok(passage)
    }

    /// Writes what became of a class so that equal fates are equal values.
    fn settle(&mut self, class: &Class, passage: &mut Passage) -> Result<(), Undecided> {
        for fate in &mut passage.fates {
            let copies = fate.copies.iter_mut().map(|(_, tags)| tags);
            let unknown = &mut fate.unknown;
            for tags in copies.chain(unknown).chain(&mut fate.to_host) {
                self.shorten(class, tags)?;
            }
            fate.copies.sort();
        }
        Ok(())
    }

    fn pass(
        &mut self,
        class: &Class,
        made: &impl Fn(usize) -> bool,
        mut place: Place,
        passage: &mut Passage,
    ) -> Result<(), Undecided> {
        loop {
            let mut takers = self.takers(class, made, &place)?;
            let Some(taker) = takers.pop() else {
                if let [fate] = &mut passage.fates[..] {
                    fate.to_host = Some(place.tags);
                }
                return Ok(());
            };
            passage.met_change |= self.program.entries[taker].changes();
            if takers.is_empty() {
                match self.act(class, made, taker, place, passage)? {
                    Some(next) => place = next,
                    None => return Ok(()),
                }
                continue;
            }
            // The kernel may ask any of these first.
            takers.push(taker);
            let mut fates = Vec::new();
            for taker in takers {
                let mut branch = passage.clone();
                let next = self.act(class, made, taker, place.clone(), &mut branch)?;
                if let Some(next) = next {
                    self.pass(class, made, next, &mut branch)?;
                }
                self.settle(class, &mut branch)?;
                for fate in branch.fates {
                    if !fates.contains(&fate) {
                        fates.push(fate);
                    }
                }
            }
            passage.fates = fates;
            return Ok(());
        }
    }

    /// The entries of which one takes the class next: several where an old and a new rule overlap
    /// in one prio.
    fn takers(
        &mut self,
        class: &Class,
        made: &impl Fn(usize) -> bool,
        place: &Place,
    ) -> Result<Vec<usize>, Undecided> {
        let mut takers: Vec<usize> = Vec::new();
        for at in self.relevant(place.chain).iter().copied() {
            let entry = self.program.entries[at];
            if let Some(first) = takers.first() {
                let first = self.program.entries[*first];
                if first.id().prio() != entry.id().prio() || !first.changes() {
                    break;
                }
                if !entry.changes() {
                    continue;
                }
            }
            if place.after.is_some_and(|after| entry.id().prio() <= after)
                || entry.version(made(at)).is_none()
            {
                continue;
            }
            if let Some(cube) = self.question(at, &place.tags)
                && self.answer(class, &cube)?
            {
                takers.push(at);
            }
        }
        Ok(takers)
    }

    /// Does what a rule does; where the frame goes on, if it does.
    fn act(
        &mut self,
        class: &Class,
        made: &impl Fn(usize) -> bool,
        taker: usize,
        mut place: Place,
        passage: &mut Passage,
    ) -> Result<Option<Place>, Undecided> {
        let entry = self.program.entries[taker];
        let (Some(rule), [fate]) = (entry.version(made(taker)), &mut passage.fates[..]) else {
            return Ok(None);
        };
        let mut next = 0;
        while let Some(action) = rule.actions().get(next) {
            next += 1;
            let control = match meaning(action) {
                Meaning::Control(control) => control,
                Meaning::Police(police) => {
                    let bit = Seen::Exceeds(action.clone(), place.tags.clone());
                    let cube = vec![(self.place(bit), 1, 1)];
                    if self.answer(class, &Rc::new(cube))? { police.exceed } else { police.conform }
                }
                Meaning::Copy(to) => {
                    fate.copies.push((to, place.tags.clone()));
                    if action.continues() { Control::Pipe } else { Control::Drop }
                }
                Meaning::Push(tag) => {
                    place.tags.written.push(tag);
                    Control::Pipe
                }
                Meaning::Pop => {
                    if place.tags.written.pop().is_none() && self.is_tagged(class, &place.tags)? {
                        place.tags.gone += 1;
                    }
                    Control::Pipe
                }
                Meaning::Modify(tpid, vid, pcp) => {
                    let tags = &mut place.tags;
                    if let Some(outer) = tags.written.last_mut() {
                        *outer = Written { tpid, vid, pcp: pcp.map_or(outer.pcp, Pcp::Is) };
                    } else if self.is_tagged(class, tags)? {
                        let pcp = pcp.map_or(Pcp::Of(tags.gone), Pcp::Is);
                        tags.written.push(Written { tpid, vid, pcp });
                        tags.gone += 1;
                    }
                    Control::Pipe
                }
                Meaning::Noted => {
                    place.tags.noted = place.tags.noted.iter().chain([action]).cloned().collect();
                    fate.unknown.push(place.tags.clone());
                    Control::Pipe
                }
                Meaning::Unknown => {
                    place.tags.unknown =
                        place.tags.unknown.iter().chain([action]).cloned().collect();
                    fate.unknown.push(place.tags.clone());
                    Control::Pipe
                }
            };
            match control {
                Control::Pipe => {}
                Control::Jump(to) => next = usize::from(to),
                Control::Drop => return Ok(None),
                Control::Pass => {
                    fate.to_host = Some(place.tags);
                    return Ok(None);
                }
                Control::Continue => {
                    return Ok(Some(Place { after: Some(entry.id().prio()), ..place }));
                }
                Control::Goto(chain) => {
                    let gotos = place.gotos + 1;
                    let next = Place { chain, after: None, gotos, ..place };
                    return Ok((gotos <= GOTOS_MAX).then_some(next));
                }
            }
        }
        Ok(None)
    }

    /// Whether the outer original tag that is left is one.
    fn is_tagged(&mut self, class: &Class, tags: &Tags) -> Result<bool, Undecided> {
        let place = self.place(Seen::EtherType(tags.gone));
        for tpid in [VlanTpid::Dot1Q, VlanTpid::Dot1Ad] {
            let cube = Rc::new(vec![(place, u128::from(tpid.ethertype()), 0xffff)]);
            if self.answer(class, &cube)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes tags that were taken off and put back as if nothing had happened, so that equal
    /// frames are equal values.
    fn shorten(&mut self, class: &Class, tags: &mut Tags) -> Result<(), Undecided> {
        while let (Some(tag), true) = (tags.written.first().copied(), tags.gone > 0) {
            let original = tags.gone - 1;
            let mut cube = Cube::new();
            push(&mut cube, self.place(Seen::EtherType(original)), tag.tpid.into(), 0xffff);
            push(&mut cube, self.place(Seen::Vid(original)), tag.vid.into(), 0x0fff);
            if let Pcp::Is(pcp) = tag.pcp {
                push(&mut cube, self.place(Seen::Pcp(original)), pcp.into(), 7);
            }
            cube.sort_unstable();
            if !self.answer(class, &Rc::new(cube))? {
                break;
            }
            tags.written.remove(0);
            tags.gone -= 1;
        }
        for tag in &mut tags.written {
            let Pcp::Of(original) = tag.pcp else { continue };
            let facts = self.facts;
            for &pcp in &facts.pcps {
                let cube = vec![(self.place(Seen::Pcp(original)), pcp.into(), 7)];
                if self.answer(class, &Rc::new(cube))? {
                    tag.pcp = Pcp::Is(pcp);
                }
            }
        }
        Ok(())
    }
}

impl Tags {
    /// The tag behind this many others: a written one, or which original one.
    fn at(&self, depth: usize) -> Result<Written, usize> {
        let written = self.written.iter().rev().nth(depth);
        written.copied().ok_or(self.gone + depth.saturating_sub(self.written.len()))
    }
}

fn agrees(known: u128, value: u128, mask: u128) -> Option<()> {
    ((known ^ value) & mask == 0).then_some(())
}

/// What an action does.
enum Meaning<'a> {
    /// Nothing but this.
    Control(Control),
    Police(&'a Police),
    Copy(Receiver),
    Push(Written),
    Pop,
    Modify(u16, u16, Option<u8>),
    /// Something to the frame that no key sees.
    Noted,
    Unknown,
}

fn meaning(action: &Action) -> Meaning<'_> {
    match action {
        // A trap ends there in software.
        Action::Drop | Action::Trap => Meaning::Control(Control::Drop),
        Action::Pass => Meaning::Control(Control::Pass),
        Action::Pipe => Meaning::Control(Control::Pipe),
        Action::Continue => Meaning::Control(Control::Continue),
        Action::Jump(to) => Meaning::Control(Control::Jump(*to)),
        Action::Goto(chain) => Meaning::Control(Control::Goto(*chain)),
        Action::Police(police) => Meaning::Police(police),
        Action::Mirror(to) | Action::Redirect(to) => Meaning::Copy(Receiver::Egress(*to)),
        Action::MirrorIngress(to) | Action::RedirectIngress(to) => {
            Meaning::Copy(Receiver::Ingress(*to))
        }
        Action::MirrorBlock { direction, block } | Action::RedirectBlock { direction, block } => {
            Meaning::Copy(Receiver::Block(*direction, *block))
        }
        Action::VlanPush { tpid, vid } => Meaning::Push(written(*tpid, *vid, 0)),
        Action::VlanPushPrio { tpid, vid, prio } => Meaning::Push(written(*tpid, *vid, prio.get())),
        Action::VlanPop => Meaning::Pop,
        Action::VlanModify { tpid, vid } => Meaning::Modify(tpid.ethertype(), vid.get(), None),
        Action::VlanModifyPrio { tpid, vid, prio } => {
            Meaning::Modify(tpid.ethertype(), vid.get(), Some(prio.get()))
        }
        Action::Csum(_) | Action::SkbEdit(_) | Action::Sample(_) | Action::SharedPolice(_) => {
            Meaning::Noted
        }
        _ => Meaning::Unknown,
    }
}

const fn written(tpid: VlanTpid, vid: VlanId, pcp: u8) -> Written {
    Written { tpid: tpid.ethertype(), vid: vid.get(), pcp: Pcp::Is(pcp) }
}

const _: () = assert!(KEY_MAX <= size_of::<u128>(), "what keys see must fit into a number");

fn number(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u128::from(*byte))
}

fn push(cube: &mut Cube, place: usize, value: u128, mask: u128) {
    match cube.iter_mut().find(|(at, ..)| *at == place) {
        Some((_, known, bits)) => {
            *known |= value & mask;
            *bits |= mask;
        }
        None => cube.push((place, value & mask, mask)),
    }
}

fn bits(cube: &Cube, place: usize) -> (u128, u128) {
    match cube.binary_search_by_key(&place, |(at, ..)| *at) {
        Ok(found) => (cube[found].1, cube[found].2),
        Err(_) => (0, 0),
    }
}

/// Whether a frame can have the bits of both.
fn compatible(one: &Cube, other: &Cube) -> bool {
    other.iter().all(|(place, value, mask)| {
        let (known, known_mask) = bits(one, *place);
        (known ^ value) & known_mask & mask == 0
    })
}

/// How many bits `cube` has beyond those of `with`.
fn beyond(cube: &Cube, with: &Cube) -> u32 {
    cube.iter().map(|(place, _, mask)| (mask & !bits(with, *place).1).count_ones()).sum()
}

fn joined(one: &Cube, other: &Cube) -> Cube {
    let mut both = one.clone();
    for (place, value, mask) in other {
        push(&mut both, *place, *value, *mask);
    }
    both.sort_unstable();
    both
}

impl Class {
    /// Whether its frames have all these bits, if they agree in that.
    fn has(&self, cube: &Rc<Cube>) -> Option<bool> {
        if !compatible(&self.with, cube) {
            return Some(false);
        }
        if beyond(cube, &self.with) == 0 {
            return Some(true);
        }
        // What has these bits has all those of something that the class is without.
        let excluded = self.without.iter().any(|without| {
            Rc::ptr_eq(without, cube)
                || without.iter().all(|(place, value, mask)| {
                    let (known, known_mask) = bits(&self.with, *place);
                    let (asked, asked_mask) = bits(cube, *place);
                    mask & !(known_mask | asked_mask) == 0 && ((known | asked) ^ value) & mask == 0
                })
        });
        if excluded { Some(false) } else { None }
    }

    /// Those of its frames that have not all of these bits, if there are any.
    pub(super) fn less(&self, cube: &Rc<Cube>) -> Option<Class> {
        let mut class = self.clone();
        if compatible(&class.with, cube) {
            class.without.push(cube.clone());
        }
        class.inhabited()
    }

    /// Those of its frames that have all of these bits, if there are any.
    pub(super) fn more(&self, cube: &Rc<Cube>) -> Option<Class> {
        if !compatible(&self.with, cube) {
            return None;
        }
        let with = joined(&self.with, cube);
        let without: Vec<Rc<Cube>> =
            self.without.iter().filter(|other| compatible(&with, other)).cloned().collect();
        Class { with, without }.inhabited()
    }

    /// Whether a frame of the class can be matched in this region.
    pub(super) fn meets(&self, region: &Cube) -> bool {
        compatible(&self.with, region)
    }

    fn inhabited(self) -> Option<Class> {
        // Each excluded cube takes this share of the class: together less than all?
        let share: f64 = self
            .without
            .iter()
            .map(|cube| 0.5_f64.powi(beyond(cube, &self.with).min(1000) as i32))
            .sum();
        if share < 1.0 {
            return Some(self);
        }
        let mut steps = 10_000;
        avoids(&self.with, &self.without, &mut steps).then_some(self)
    }
}

/// Whether something has the bits of `with` and not all those of any other; yes if that is too
/// hard to say.
fn avoids(with: &Cube, without: &[Rc<Cube>], steps: &mut usize) -> bool {
    let Some((first, rest)) = without.split_first() else { return true };
    if !compatible(with, first) {
        return avoids(with, rest, steps);
    }
    *steps = steps.saturating_sub(1);
    if *steps == 0 {
        return true;
    }
    first.iter().any(|(place, value, mask)| {
        let mut free = mask & !bits(with, *place).1;
        while free != 0 {
            let bit = free & free.wrapping_neg();
            free &= !bit;
            let other = joined(with, &vec![(*place, !value & bit, bit)]);
            if avoids(&other, rest, steps) {
                return true;
            }
        }
        false
    })
}
