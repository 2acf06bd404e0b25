//! What is wanted: the resources that clients have put, with what must outlive a restart beside
//! them.
//!
//! In: committed changes from `store/`. Out: what `plan/` reads. Nothing here is validated again;
//! `eswitchd-api` checked it before it was stored.

use std::{collections::BTreeSet, ops::Deref};

use api::{
    batch::{ChangeOutcome, Wanted},
    error::ResourceKind,
    resources::{EswitchShape, GuestSpec, NetworkSpec, PortSpec},
    types::{Id, MacAddr},
};
use rpds::RedBlackTreeMapSync;
use serde::{Deserialize, Serialize};

/// Everything that clients want. A copy costs the same however much there is, and shares what has
/// not changed since.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Intent {
    /// The revision of the last committed change.
    pub revision: u64,
    /// Networks by id.
    pub networks: Table<NetworkSpec>,
    /// Ports by id.
    pub ports: Table<PortSpec>,
    /// Guests that were put (others are only discovered).
    pub guests: Table<GuestSpec>,
    /// What the eswitches of adapters were asked to be.
    pub eswitches: Table<EswitchOrder>,
}

/// What an eswitch was asked to be, and how far that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EswitchOrder {
    /// What was asked for.
    pub wanted: EswitchShape,
    /// What it was then: where to go back to if the kernel refuses.
    pub before: EswitchShape,
    /// How far it is.
    pub stage: OrderStage,
}

/// How far an [`EswitchOrder`] is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderStage {
    /// On its way.
    Forward,
    /// On its way back.
    Back {
        /// What the kernel refused.
        why: String,
    },
    /// There.
    Settled,
    /// Back where it was.
    GivenUp {
        /// What the kernel refused.
        why: String,
    },
}

impl EswitchOrder {
    /// Where the eswitch is to be brought; none where nothing is left to do.
    pub fn target(&self) -> Option<EswitchShape> {
        match self.stage {
            OrderStage::Forward => Some(self.wanted),
            OrderStage::Back { .. } => Some(self.before),
            OrderStage::Settled | OrderStage::GivenUp { .. } => None,
        }
    }
}

/// A spec as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored<Spec> {
    /// The revision that created it: who came first.
    pub created: u64,
    /// The revision that changed it last.
    pub revision: u64,
    /// A small number of its own, kept while it exists: networks take their chain numbers from it.
    pub number: u32,
    /// What is wanted.
    pub spec: Spec,
}

/// Resources of one kind by id. Reads as a map.
#[derive(Debug, Clone)]
pub struct Table<Spec> {
    stored: RedBlackTreeMapSync<Id, Stored<Spec>>,
    free: FreeNumbers,
}

impl<Spec> Default for Table<Spec> {
    fn default() -> Self {
        Table { stored: RedBlackTreeMapSync::default(), free: FreeNumbers::beside([]) }
    }
}

impl<Spec: PartialEq> PartialEq for Table<Spec> {
    fn eq(&self, other: &Self) -> bool {
        self.stored == other.stored
    }
}

impl<Spec: Eq> Eq for Table<Spec> {}

impl<Spec> Deref for Table<Spec> {
    type Target = RedBlackTreeMapSync<Id, Stored<Spec>>;

    fn deref(&self) -> &Self::Target {
        &self.stored
    }
}

impl<'t, Spec> IntoIterator for &'t Table<Spec> {
    type Item = (&'t Id, &'t Stored<Spec>);
    type IntoIter = <&'t RedBlackTreeMapSync<Id, Stored<Spec>> as IntoIterator>::IntoIter;

    fn into_iter(self) -> Self::IntoIter {
        self.stored.iter()
    }
}

impl<Spec> FromIterator<(Id, Stored<Spec>)> for Table<Spec> {
    fn from_iter<I: IntoIterator<Item = (Id, Stored<Spec>)>>(stored: I) -> Self {
        let stored: RedBlackTreeMapSync<Id, Stored<Spec>> = stored.into_iter().collect();
        let free = FreeNumbers::beside(stored.values().map(|stored| stored.number));
        Table { stored, free }
    }
}

impl<Spec: Clone + PartialEq> Table<Spec> {
    /// Makes one resource what is wanted.
    fn put(&mut self, id: Id, spec: Option<Spec>, revision: u64) -> Effect {
        let before = self.stored.get(&id);
        let Some(spec) = spec else {
            let Some(before) = before else { return Effect::Absent };
            self.free.release(before.number);
            self.stored.remove_mut(&id);
            return Effect::Deleted;
        };
        let (created, number, effect) = match before {
            Some(before) if before.spec == spec => return Effect::Unchanged,
            Some(before) => (before.created, before.number, Effect::Updated),
            None => (revision, self.free.take(), Effect::Created),
        };
        self.stored.insert_mut(id, Stored { created, revision, number, spec });
        effect
    }

    /// Puts another table in the place of this one; whether that changes anything. What is as it
    /// was keeps its revision.
    fn replace(&mut self, with: Table<Spec>, revision: u64) -> bool {
        let kept = |id: &Id, now: &Stored<Spec>| {
            let was = self.stored.get(id)?;
            let same = (was.created, was.number, &was.spec) == (now.created, now.number, &now.spec);
            same.then_some(was.revision)
        };
        let after = with.iter().map(|(id, now)| {
            let revision = kept(id, now).unwrap_or(revision);
            (id.clone(), Stored { revision, ..now.clone() })
        });
        let after: Table<Spec> = after.collect();
        let changed = *self != after;
        *self = after;
        changed
    }
}

/// The numbers from 1 that no resource of a table has: ranges, by the first of each with the last.
#[derive(Debug, Clone)]
struct FreeNumbers(RedBlackTreeMapSync<u32, u32>);

impl FreeNumbers {
    /// All but these.
    fn beside(taken: impl IntoIterator<Item = u32>) -> Self {
        let taken: BTreeSet<u32> = taken.into_iter().collect();
        let mut free = RedBlackTreeMapSync::default();
        let mut first = Some(1);
        for number in taken.into_iter().filter(|number| *number > 0) {
            if let Some(first) = first.filter(|first| *first < number) {
                free.insert_mut(first, number - 1);
            }
            first = number.checked_add(1);
        }
        if let Some(first) = first {
            free.insert_mut(first, u32::MAX);
        }
        FreeNumbers(free)
    }

    /// The least of them, free no longer.
    fn take(&mut self) -> u32 {
        // Four billion resources are more than anybody has.
        let Some((&number, &last)) = self.0.first() else { return u32::MAX };
        self.0.remove_mut(&number);
        if number < last {
            self.0.insert_mut(number + 1, last);
        }
        number
    }

    /// Free again.
    fn release(&mut self, number: u32) {
        self.0.insert_mut(number, number);
    }
}

/// An address in a network.
pub type Address = (Id, MacAddr);

/// Which port holds which address in which network. First come keeps it, across restarts. Copies
/// share what neither has changed since.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    holders: RedBlackTreeMapSync<Address, Id>,
    /// The same by port.
    held: RedBlackTreeMapSync<Id, BTreeSet<Address>>,
}

impl Claims {
    /// The port that holds `mac` in `network`.
    pub fn holder(&self, network: &Id, mac: MacAddr) -> Option<&Id> {
        self.holders.get(&(network.clone(), mac))
    }

    /// Gives an address to a port, whoever held it.
    pub fn give(&mut self, address: Address, port: Id) {
        match self.holders.get(&address).cloned() {
            Some(before) if before == port => return,
            Some(before) => self.no_longer_held(&before, &address),
            None => {}
        }
        self.holders.insert_mut(address.clone(), port.clone());
        match self.held.get_mut(&port) {
            Some(held) => {
                held.insert(address);
            }
            None => self.held.insert_mut(port, [address].into()),
        }
    }

    fn no_longer_held(&mut self, port: &Id, address: &Address) {
        let Some(held) = self.held.get_mut(port) else { return };
        held.remove(address);
        if held.is_empty() {
            self.held.remove_mut(port);
        }
    }

    /// Takes everything from a port: what that was.
    pub fn take_from(&mut self, port: &Id) -> BTreeSet<Address> {
        let held = self.held.get(port).cloned().unwrap_or_default();
        self.held.remove_mut(port);
        for address in &held {
            self.holders.remove_mut(address);
        }
        held
    }

    /// All addresses with who holds them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&Address, &Id)> {
        self.holders.iter()
    }

    /// What a port holds.
    pub fn of_port(&self, port: &Id) -> impl Iterator<Item = &Address> {
        self.held.get(port).into_iter().flatten()
    }
}

impl FromIterator<(Address, Id)> for Claims {
    fn from_iter<I: IntoIterator<Item = (Address, Id)>>(held: I) -> Self {
        let mut claims = Claims::default();
        for (address, port) in held {
            claims.give(address, port);
        }
        claims
    }
}

/// One change that a client asks for; `None` deletes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "few of them live at a time")]
pub enum Change {
    /// Of a network.
    Network(Id, Option<NetworkSpec>),
    /// Of a port.
    Port(Id, Option<PortSpec>),
    /// Of a guest.
    Guest(Id, Option<GuestSpec>),
    /// Of an adapter's eswitch.
    Eswitch(Id, Option<EswitchOrder>),
    /// Of everything: what a snapshot says takes its place.
    Everything(Box<Restoration>),
}

/// What a snapshot says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restoration {
    /// The resources. Their revisions do not matter.
    pub intent: Intent,
    /// Who holds which address.
    pub claims: Claims,
}

impl From<Wanted> for Change {
    fn from(wanted: Wanted) -> Change {
        match wanted {
            Wanted::Network(id, spec) => Change::Network(id, spec),
            Wanted::Port(id, spec) => Change::Port(id, spec),
            Wanted::Guest(id, spec) => Change::Guest(id, spec),
        }
    }
}

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// There was no such resource before.
    Created,
    /// The resource has another spec now.
    Updated,
    /// The resource already had this spec; the revision did not move.
    Unchanged,
    /// The resource is gone.
    Deleted,
    /// There was nothing to delete.
    Absent,
}

impl From<Effect> for ChangeOutcome {
    fn from(effect: Effect) -> ChangeOutcome {
        match effect {
            Effect::Created => ChangeOutcome::Created,
            Effect::Updated => ChangeOutcome::Updated,
            Effect::Unchanged => ChangeOutcome::Unchanged,
            Effect::Deleted => ChangeOutcome::Deleted,
            Effect::Absent => ChangeOutcome::Absent,
        }
    }
}

/// What a change is about, before it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject<'c> {
    /// Its kind.
    pub kind: ResourceKind,
    /// Its id.
    pub id: &'c Id,
    /// Its revision, where it is there.
    pub revision: Option<u64>,
    /// Whether it is there already as the change wants it.
    pub as_wanted: bool,
}

impl Change {
    /// Who is to hold which address, where the change says so.
    pub fn claims(&self) -> Option<&Claims> {
        match self {
            Change::Everything(restoration) => Some(&restoration.claims),
            _ => None,
        }
    }
}

impl Intent {
    /// What this change is about, as it is now; none where it is about everything.
    pub fn subject<'c>(&self, change: &'c Change) -> Option<Subject<'c>> {
        fn of<'c, Spec: PartialEq>(
            kind: ResourceKind,
            table: &Table<Spec>,
            id: &'c Id,
            wanted: Option<&Spec>,
        ) -> Subject<'c> {
            let stored = table.get(id);
            Subject {
                kind,
                id,
                revision: stored.map(|stored| stored.revision),
                as_wanted: stored.is_some_and(|stored| Some(&stored.spec) == wanted),
            }
        }
        Some(match change {
            Change::Network(id, spec) => {
                of(ResourceKind::Network, &self.networks, id, spec.as_ref())
            }
            Change::Port(id, spec) => of(ResourceKind::Port, &self.ports, id, spec.as_ref()),
            Change::Guest(id, spec) => of(ResourceKind::Guest, &self.guests, id, spec.as_ref()),
            Change::Eswitch(id, order) => {
                of(ResourceKind::Adapter, &self.eswitches, id, order.as_ref())
            }
            Change::Everything(_) => return None,
        })
    }

    /// Makes a change. A resource keeps what it got at creation; the revision moves only when
    /// something changed.
    pub fn apply(&mut self, change: Change) -> Effect {
        let revision = match &change {
            // Also higher than any that somebody may have read where the snapshot was made.
            Change::Everything(restoration) => self.revision.max(restoration.intent.revision) + 1,
            _ => self.revision + 1,
        };
        let effect = match change {
            Change::Network(id, spec) => self.networks.put(id, spec, revision),
            Change::Port(id, spec) => self.ports.put(id, spec, revision),
            Change::Guest(id, spec) => self.guests.put(id, spec, revision),
            Change::Eswitch(id, order) => self.eswitches.put(id, order, revision),
            Change::Everything(restoration) => {
                let Intent { networks, ports, guests, eswitches, .. } = restoration.intent;
                let changed = [
                    self.networks.replace(networks, revision),
                    self.ports.replace(ports, revision),
                    self.guests.replace(guests, revision),
                    self.restore_eswitches(&eswitches, revision),
                ];
                if changed.contains(&true) { Effect::Updated } else { Effect::Unchanged }
            }
        };
        if matches!(effect, Effect::Created | Effect::Updated | Effect::Deleted) {
            self.revision = revision;
        }
        effect
    }

    /// Asks of eswitches what these orders ask; whether that changes anything. Steps that one is
    /// taken through go on, and what was refused stays told.
    fn restore_eswitches(&mut self, orders: &Table<EswitchOrder>, revision: u64) -> bool {
        let now = self.eswitches.clone();
        let released = now.iter().filter(|(id, stored)| {
            stored.spec.stage == OrderStage::Settled && !orders.contains_key(*id)
        });
        let ordered = orders.iter().filter(|(id, order)| {
            now.get(*id).map(|stored| &stored.spec).is_none_or(|now| {
                now.target().is_none()
                    && (now.wanted, &now.stage) != (order.spec.wanted, &OrderStage::Settled)
            })
        });
        let ordered = ordered.map(|(id, order)| (id, Some(order.spec.clone())));
        let mut changed = false;
        for (id, order) in released.map(|(id, _)| (id, None)).chain(ordered) {
            self.eswitches.put(id.clone(), order, revision);
            changed = true;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    fn guest(qmp: &str) -> Option<GuestSpec> {
        Some(GuestSpec { qmp: Some(qmp.into()), ..GuestSpec::default() })
    }

    #[test]
    fn the_same_spec_twice_moves_no_revision() {
        let mut intent = Intent::default();
        assert_eq!(intent.apply(Change::Guest(id("a"), guest("/q"))), Effect::Created);
        assert_eq!(intent.apply(Change::Guest(id("a"), guest("/q"))), Effect::Unchanged);
        assert_eq!(intent.revision, 1);
        assert_eq!(intent.apply(Change::Guest(id("a"), guest("/r"))), Effect::Updated);
        assert_eq!((intent.revision, intent.guests[&id("a")].created), (2, 1));
    }

    #[test]
    fn a_number_stays_while_its_resource_exists_and_is_free_again_after() {
        let mut intent = Intent::default();
        for name in ["a", "b", "c"] {
            intent.apply(Change::Guest(id(name), guest("/q")));
        }
        intent.apply(Change::Guest(id("a"), None));
        assert_eq!(intent.guests[&id("b")].number, 2);
        intent.apply(Change::Guest(id("d"), guest("/q")));
        assert_eq!(intent.guests[&id("d")].number, 1);
        assert_eq!(intent.apply(Change::Guest(id("a"), None)), Effect::Absent);
    }

    #[test]
    fn numbers_are_the_least_that_are_free_also_between_and_beside_those_that_were_stored() {
        let stored =
            |number| Stored { created: 1, revision: 1, number, spec: GuestSpec::default() };
        let there = [2, 3, 6, u32::MAX].map(|number| (id(&format!("g{number}")), stored(number)));
        let mut intent = Intent { guests: there.into_iter().collect(), ..Intent::default() };
        let mut put = |name: &str, spec| {
            intent.apply(Change::Guest(id(name), spec));
            intent.guests.get(&id(name)).map(|guest| guest.number)
        };
        let numbers: Vec<_> = ["a", "b", "c", "d"].map(|name| put(name, guest("/q"))).into();
        assert_eq!(numbers, [1, 4, 5, 7].map(Some));
        assert_eq!((put("g3", None), put("a", None)), (None, None));
        let numbers: Vec<_> = ["e", "f", "g"].map(|name| put(name, guest("/q"))).into();
        assert_eq!(numbers, [1, 3, 8].map(Some));
    }

    #[test]
    fn a_copy_stays_as_it_was_and_what_is_equal_is_equal_however_it_came_about() {
        let mut intent = Intent::default();
        let mut claims = Claims::default();
        let address = |last| (id("net"), MacAddr([2, 0, 0, 0, 0, last]));
        intent.apply(Change::Guest(id("a"), guest("/q")));
        claims.give(address(1), id("p"));
        let (was, held) = (intent.clone(), claims.clone());
        intent.apply(Change::Guest(id("a"), guest("/r")));
        claims.give(address(1), id("q"));
        claims.give(address(2), id("p"));
        assert_eq!(was.guests[&id("a")].spec.qmp.as_deref(), Some("/q"));
        assert_eq!(held.holder(&id("net"), address(1).1), Some(&id("p")));
        assert_eq!(held.of_port(&id("q")).count(), 0);
        assert!(was != intent && held != claims);
        claims.take_from(&id("q"));
        claims.take_from(&id("p"));
        claims.give(address(1), id("p"));
        assert_eq!(held, claims);
    }
}
