//! What is wanted: the resources that clients have put, with what must outlive a restart beside
//! them.
//!
//! In: committed changes from `store/`. Out: what `plan/` reads. Nothing here is validated again;
//! `eswitchd-api` checked it before it was stored.

use std::collections::{BTreeMap, BTreeSet};

use api::{
    batch::{ChangeOutcome, Wanted},
    error::ResourceKind,
    resources::{EswitchShape, GuestSpec, NetworkSpec, PortSpec},
    types::{Id, MacAddr},
};
use serde::{Deserialize, Serialize};

/// Everything that clients want.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Intent {
    /// The revision of the last committed change.
    pub revision: u64,
    /// Networks by id.
    pub networks: BTreeMap<Id, Stored<NetworkSpec>>,
    /// Ports by id.
    pub ports: BTreeMap<Id, Stored<PortSpec>>,
    /// Guests that were put (others are only discovered).
    pub guests: BTreeMap<Id, Stored<GuestSpec>>,
    /// What the eswitches of adapters were asked to be.
    pub eswitches: BTreeMap<Id, Stored<EswitchOrder>>,
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

/// An address in a network.
pub type Address = (Id, MacAddr);

/// Which port holds which address in which network. First come keeps it, across restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    holders: BTreeMap<Address, Id>,
    /// The same by port.
    held: BTreeMap<Id, BTreeSet<Address>>,
}

impl Claims {
    /// The port that holds `mac` in `network`.
    pub fn holder(&self, network: &Id, mac: MacAddr) -> Option<&Id> {
        self.holders.get(&(network.clone(), mac))
    }

    /// Gives an address to a port, whoever held it.
    pub fn give(&mut self, address: Address, port: Id) {
        if let Some(before) = self.holders.insert(address.clone(), port.clone())
            && before != port
            && let Some(held) = self.held.get_mut(&before)
        {
            held.remove(&address);
            if held.is_empty() {
                self.held.remove(&before);
            }
        }
        self.held.entry(port).or_default().insert(address);
    }

    /// Takes everything from a port: what that was.
    pub fn take_from(&mut self, port: &Id) -> BTreeSet<Address> {
        let held = self.held.remove(port).unwrap_or_default();
        for address in &held {
            self.holders.remove(address);
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
            table: &BTreeMap<Id, Stored<Spec>>,
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
            Change::Network(id, spec) => put(&mut self.networks, id, spec, revision),
            Change::Port(id, spec) => put(&mut self.ports, id, spec, revision),
            Change::Guest(id, spec) => put(&mut self.guests, id, spec, revision),
            Change::Eswitch(id, order) => put(&mut self.eswitches, id, order, revision),
            Change::Everything(restoration) => {
                // Steps that an eswitch is taken through go on.
                let Intent { networks, ports, guests, .. } = restoration.intent;
                let changed = [
                    replace(&mut self.networks, networks, revision),
                    replace(&mut self.ports, ports, revision),
                    replace(&mut self.guests, guests, revision),
                ];
                if changed.contains(&true) { Effect::Updated } else { Effect::Unchanged }
            }
        };
        if matches!(effect, Effect::Created | Effect::Updated | Effect::Deleted) {
            self.revision = revision;
        }
        effect
    }
}

/// Puts one table in the place of another; whether that changes anything. What is as it was keeps
/// its revision.
fn replace<Spec: PartialEq>(
    table: &mut BTreeMap<Id, Stored<Spec>>,
    with: BTreeMap<Id, Stored<Spec>>,
    revision: u64,
) -> bool {
    let before = std::mem::replace(table, with);
    for (id, stored) in table.iter_mut() {
        stored.revision = match before.get(id) {
            Some(was)
                if (was.created, was.number, &was.spec)
                    == (stored.created, stored.number, &stored.spec) =>
            {
                was.revision
            }
            _ => revision,
        };
    }
    *table != before
}

fn put<Spec: PartialEq>(
    table: &mut BTreeMap<Id, Stored<Spec>>,
    id: Id,
    spec: Option<Spec>,
    revision: u64,
) -> Effect {
    let Some(spec) = spec else {
        return if table.remove(&id).is_some() { Effect::Deleted } else { Effect::Absent };
    };
    match table.get_mut(&id) {
        Some(stored) if stored.spec == spec => Effect::Unchanged,
        Some(stored) => {
            stored.spec = spec;
            stored.revision = revision;
            Effect::Updated
        }
        None => {
            let number = free_number(table.values().map(|stored| stored.number), table.len());
            table.insert(id, Stored { created: revision, revision, number, spec });
            Effect::Created
        }
    }
}

/// The first number from 1 that none of `count` others has.
fn free_number(taken: impl Iterator<Item = u32>, count: usize) -> u32 {
    let mut free = vec![true; count + 2];
    for number in taken {
        if let Some(slot) = free.get_mut(number as usize) {
            *slot = false;
        }
    }
    let number = free.iter().skip(1).position(|free| *free).map_or(count, |first| first);
    u32::try_from(number).map_or(u32::MAX, |number| number.saturating_add(1))
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
}
