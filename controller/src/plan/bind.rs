//! First stage: on which VF or representor each port stands.
//!
//! A guest's function counts only while it is enabled and what it stands on is known and
//! confirmed. One place carries one port: the port that was created first keeps it.

use std::collections::{BTreeMap, BTreeSet};

use api::{
    resources::{Backing, EswitchMode, PortFunction},
    types::Id,
};

use super::Finding;
use crate::{
    intent::Intent,
    world::{AdapterView, BackingView, Connection, GuestFunction, GuestView, NetdevView, World},
};

/// Where a port stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The adapter.
    pub adapter: Id,
    /// The VF's index; absent on a software adapter.
    pub vf: Option<u16>,
    /// The representor; absent in legacy mode.
    pub representor: Option<NetdevView>,
}

/// Where each port stands, or why nowhere; and who else would like to stand there.
#[derive(Debug, Default)]
pub struct Bindings {
    ports: BTreeMap<Id, Bound>,
    /// Who claims each place, by age: the first has it.
    claimants: BTreeMap<(Id, Spot), BTreeSet<(u64, Id)>>,
    /// Which guests' functions stand on each backing: more than one, and nobody can say whose
    /// frames those are.
    backings: BTreeMap<BackingView, BTreeSet<(Id, String)>>,
    /// The backings of each guest among them.
    of_guest: BTreeMap<Id, Vec<(BackingView, String)>>,
}

/// A port's place.
#[derive(Debug)]
struct Bound {
    created: u64,
    /// Where it would stand if it were alone.
    alone: Result<Place, Finding>,
    /// Where it stands.
    place: Result<Place, Finding>,
}

impl Bindings {
    /// Where a port stands, or why nowhere.
    pub fn place(&self, port: &Id) -> Option<&Result<Place, Finding>> {
        self.ports.get(port).map(|bound| &bound.place)
    }

    /// The ports that stand on this adapter.
    pub fn on<'b>(&'b self, adapter: &'b Id) -> impl Iterator<Item = &'b Id> {
        let first = (adapter.clone(), Spot::FIRST);
        let here = self.claimants.range(first..).take_while(move |((at, _), _)| at == adapter);
        here.filter_map(|(_, claimants)| claimants.first().map(|(_, port)| port))
    }

    /// Notes what these guests' functions stand on now. Returns the guests whose functions stand
    /// otherwise because of it: on something that is contested now, or no longer.
    pub(super) fn look_at_guests(
        &mut self,
        world: &World,
        intent: &Intent,
        guests: &BTreeSet<Id>,
    ) -> BTreeSet<Id> {
        let mut touched: BTreeSet<BackingView> = BTreeSet::new();
        for id in guests {
            for (backing, device) in self.of_guest.remove(id).unwrap_or_default() {
                if let Some(users) = self.backings.get_mut(&backing) {
                    users.remove(&(id.clone(), device));
                    if users.is_empty() {
                        self.backings.remove(&backing);
                    }
                }
                touched.insert(backing);
            }
            let functions = world.guests.get(id).map(|guest| &guest.functions);
            let known: Vec<_> = functions
                .into_iter()
                .flatten()
                .map(|(device, function)| {
                    (backing_of(intent, id, device, function), device.clone())
                })
                .filter(|(backing, _)| backing.is_known())
                .collect();
            for (backing, device) in &known {
                let users = self.backings.entry(backing.clone()).or_default();
                users.insert((id.clone(), device.clone()));
                touched.insert(backing.clone());
            }
            if !known.is_empty() {
                self.of_guest.insert(id.clone(), known);
            }
        }
        let users = touched.iter().filter_map(|backing| self.backings.get(backing)).flatten();
        users.map(|(guest, _)| guest.clone()).collect()
    }

    /// Finds the places of these ports anew; says which ports may stand elsewhere now: they, and
    /// those with whom they share a place.
    pub(super) fn update(
        &mut self,
        world: &World,
        intent: &Intent,
        ports: &BTreeSet<Id>,
    ) -> BTreeSet<Id> {
        let mut touched: BTreeSet<(Id, Spot)> = BTreeSet::new();
        for id in ports {
            if let Some(old) = self.ports.remove(id)
                && let Ok(place) = &old.alone
            {
                let key = (place.adapter.clone(), Spot::of(place));
                if let Some(claimants) = self.claimants.get_mut(&key) {
                    claimants.remove(&(old.created, id.clone()));
                    if claimants.is_empty() {
                        self.claimants.remove(&key);
                    }
                }
                touched.insert(key);
            }
            let Some(port) = intent.ports.get(id) else { continue };
            let alone = self.alone(world, intent, &port.spec.function);
            if let Ok(place) = &alone {
                let key = (place.adapter.clone(), Spot::of(place));
                let claimants = self.claimants.entry(key.clone()).or_default();
                claimants.insert((port.created, id.clone()));
                touched.insert(key);
            }
            let bound = Bound { created: port.created, place: alone.clone(), alone };
            self.ports.insert(id.clone(), bound);
        }
        let mut changed = ports.clone();
        for key in touched {
            let Some(claimants) = self.claimants.get(&key) else { continue };
            let mut claimants = claimants.iter().map(|(_, port)| port);
            let Some(first) = claimants.next() else { continue };
            if let Some(bound) = self.ports.get_mut(first) {
                bound.place = bound.alone.clone();
                changed.insert(first.clone());
            }
            for later in claimants {
                if let Some(bound) = self.ports.get_mut(later) {
                    bound.place = Err(taken_by(first, &key.1));
                    changed.insert(later.clone());
                }
            }
        }
        changed
    }

    fn alone(
        &self,
        world: &World,
        intent: &Intent,
        function: &PortFunction,
    ) -> Result<Place, Finding> {
        let is_contested =
            |backing: &BackingView| self.backings.get(backing).is_some_and(|users| users.len() > 1);
        place(world, intent, is_contested, function)
    }
}

fn taken_by(first: &Id, spot: &Spot) -> Finding {
    Finding::new(
        "PlaceTaken",
        format!(
            "port `{first}`, which was created first, stands on the same {spot}; delete one of the \
             two ports"
        ),
    )
}

/// What exactly one port may stand on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Spot {
    Vf(u16),
    Netdev(String),
}

impl Spot {
    /// What sorts before every other.
    const FIRST: Spot = Spot::Vf(0);

    fn of(place: &Place) -> Self {
        match (place.vf, &place.representor) {
            (Some(index), _) => Spot::Vf(index),
            (None, Some(netdev)) => Spot::Netdev(netdev.name.clone()),
            (None, None) => Spot::Netdev(String::new()),
        }
    }
}

impl std::fmt::Display for Spot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Spot::Vf(index) => write!(f, "VF {index}"),
            Spot::Netdev(name) => write!(f, "netdev `{name}`"),
        }
    }
}

/// What a function stands on: what the platform said, else what was found.
fn backing_of(intent: &Intent, guest: &Id, device: &str, function: &GuestFunction) -> BackingView {
    let named = intent.guests.get(guest).and_then(|guest| guest.spec.backings.get(device));
    match named {
        Some(Backing::Netdev { name }) => BackingView::Netdev { name: name.clone() },
        Some(Backing::Vf { adapter, index }) => {
            // An adapter's id is its handle with the first `/` written as `-`.
            BackingView::Vf { handle: adapter.as_str().replacen('-', "/", 1), index: *index }
        }
        None => function.backing.clone(),
    }
}

fn place(
    world: &World,
    intent: &Intent,
    is_contested: impl Fn(&BackingView) -> bool,
    function: &PortFunction,
) -> Result<Place, Finding> {
    match function {
        PortFunction::GuestVf { guest, device } => {
            let function = enabled_function(world, guest, device)?;
            let backing = backing_of(intent, guest, device, function);
            if is_contested(&backing) {
                return Err(Finding::new(
                    "BackingContested",
                    format!(
                        "more than one guest function stands on the backing of `{device}` of guest \
                         `{guest}`; give each function a backing of its own"
                    ),
                ));
            }
            match backing {
                BackingView::Netdev { name } => by_netdev_name(world, &name),
                BackingView::Vf { handle, index } => by_handle(world, &handle, index),
                BackingView::Contested { reason } => Err(Finding::new("BackingContested", reason)),
                BackingView::Unsupported { reason } => {
                    Err(Finding::new("BackingUnsupported", reason))
                }
                BackingView::Unknown { reason } => Err(Finding::new("BackingUnknown", reason)),
            }
        }
        PortFunction::Vf { adapter, index } => {
            let view = present(world, adapter)?;
            by_index(adapter, view, *index)
        }
        PortFunction::Netdev { adapter, name } => {
            let view = present(world, adapter)?;
            view.representors.get(name).map(|netdev| on_netdev(adapter, netdev)).ok_or_else(|| {
                Finding::new(
                    "NetdevMissing",
                    format!(
                        "software adapter `{adapter}` has no representor `{name}`; create the \
                         netdev, or add its name to the adapter's `representors`"
                    ),
                )
            })
        }
    }
}

/// The guest's function, if the guest has enabled it.
fn enabled_function<'w>(
    world: &'w World,
    guest: &Id,
    device: &str,
) -> Result<&'w GuestFunction, Finding> {
    let unseen = || {
        Finding::new(
            "GuestNotSeen",
            format!(
                "guest `{guest}` is not there; start it with a QMP socket in the configured \
                 folder, or name its socket with PUT /v1/guests/{guest}"
            ),
        )
    };
    let view: &GuestView = world.guests.get(guest).ok_or_else(unseen)?;
    if view.connection == Connection::Gone {
        return Err(unseen());
    }
    if view.functions.is_empty() && view.connection == Connection::Connecting {
        return Err(Finding::new(
            "GuestConnecting",
            format!("guest `{guest}` has not answered yet"),
        ));
    }
    match view.run_state.as_deref() {
        Some("inmigrate") => {
            let message = format!(
                "guest `{guest}` is arriving from another host and runs there still; it is bound \
                 when it runs here"
            );
            return Err(Finding::new("GuestArriving", message));
        }
        Some("postmigrate") => {
            let message = format!(
                "guest `{guest}` has left for another host; it is bound again if it runs here again"
            );
            return Err(Finding::new("GuestLeft", message));
        }
        _ => {}
    }
    let function = view.functions.get(device).ok_or_else(|| {
        Finding::new(
            "DeviceMissing",
            format!(
                "guest `{guest}` has no device `{device}` that is an emulated PF or a VF of one; \
                 it has: {}",
                if view.functions.is_empty() {
                    "none".to_owned()
                } else {
                    view.functions.keys().cloned().collect::<Vec<_>>().join(", ")
                }
            ),
        )
    })?;
    if function.enabled {
        Ok(function)
    } else {
        Err(Finding::new(
            "VfDisabled",
            format!("the guest has not enabled `{device}` (sriov_numvfs in the guest)"),
        ))
    }
}

fn present<'w>(world: &'w World, adapter: &Id) -> Result<&'w AdapterView, Finding> {
    match world.adapters.get(adapter) {
        Some(view) if view.mode.is_some() => Ok(view),
        Some(view) => Err(Finding::new(
            "AdapterMissing",
            format!("adapter `{adapter}` is not there: {}", view.problems.join("; ")),
        )),
        None => Err(Finding::new(
            "AdapterUnknown",
            format!("no adapter `{adapter}` is configured; add an [[adapter]] for it"),
        )),
    }
}

fn by_index(adapter: &Id, view: &AdapterView, index: u16) -> Result<Place, Finding> {
    let vf = view.vfs.get(&index).ok_or_else(|| {
        Finding::new(
            "VfMissing",
            format!("adapter `{adapter}` has no VF {index}; create VFs with sriov_numvfs"),
        )
    })?;
    if view.mode != Some(EswitchMode::Legacy) && vf.representor.is_none() {
        return Err(Finding::new(
            "RepresentorMissing",
            format!("VF {index} of adapter `{adapter}` has no representor"),
        ));
    }
    Ok(Place { adapter: adapter.clone(), vf: Some(index), representor: vf.representor.clone() })
}

fn by_handle(world: &World, handle: &str, index: u16) -> Result<Place, Finding> {
    let found = world.adapters.iter().find(|(_, view)| view.handle == handle);
    match found {
        Some((adapter, _)) => {
            let view = present(world, adapter)?;
            by_index(adapter, view, index)
        }
        None => Err(Finding::new(
            "AdapterUnknown",
            format!("it stands on VF {index} of `{handle}`, which no [[adapter]] names; add one"),
        )),
    }
}

fn by_netdev_name(world: &World, name: &str) -> Result<Place, Finding> {
    world
        .adapters
        .iter()
        .find_map(|(adapter, view)| {
            view.representors.get(name).map(|netdev| on_netdev(adapter, netdev))
        })
        .ok_or_else(|| {
            Finding::new(
                "NetdevNotManaged",
                format!(
                    "it stands on netdev `{name}`, which is no representor of a configured \
                     software adapter; add its name to the adapter's `representors`"
                ),
            )
        })
}

fn on_netdev(adapter: &Id, netdev: &NetdevView) -> Place {
    Place { adapter: adapter.clone(), vf: None, representor: Some(netdev.clone()) }
}

#[cfg(test)]
mod tests {
    use api::resources::PortSpec;

    use super::*;
    use crate::{
        intent::{Change, Claims},
        plan::{AdapterPolicies, plan},
    };

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    fn guest(run_state: &str, backing: BackingView) -> GuestView {
        let function = GuestFunction {
            pf: Some("pf0".into()),
            index: Some(0),
            pci: None,
            enabled: true,
            filter: None,
            backing,
            source: None,
            visibility: Default::default(),
        };
        GuestView {
            connection: Connection::Connected,
            run_state: Some(run_state.into()),
            functions: [("vf0".to_owned(), function)].into(),
            ..GuestView::default()
        }
    }

    fn tap(name: &str) -> BackingView {
        BackingView::Netdev { name: name.into() }
    }

    /// A software adapter with taps `a` and `b`, and a port for vf0 of each of these guests.
    fn bound(guests: &[(&str, GuestView)]) -> BTreeMap<Id, Result<Place, Finding>> {
        let netdev = |number: u32, name: &str| NetdevView {
            ifindex: tc_flows::Ifindex::new(number).unwrap(),
            name: name.into(),
            mac: None,
        };
        let adapter = AdapterView {
            handle: "soft-lab".into(),
            mode: Some(EswitchMode::Software),
            representors: [("a".to_owned(), netdev(1, "a")), ("b".to_owned(), netdev(2, "b"))]
                .into(),
            ..AdapterView::default()
        };
        let mut world = World::default();
        world.adapters.insert(id("soft-lab"), adapter);
        let mut intent = Intent::default();
        for (name, view) in guests {
            world.guests.insert(id(name), view.clone());
            let spec: PortSpec = serde_json::from_value(serde_json::json!({
                "function": {"guest_vf": {"guest": name, "device": "vf0"}},
                "attachments": [{"network": "blue"}],
            }))
            .unwrap();
            intent.apply(Change::Port(id(name), Some(spec)));
        }
        let plan = plan(&world, &intent, &Claims::default(), &AdapterPolicies::new());
        plan.ports.into_iter().map(|(id, port)| (id, port.place)).collect()
    }

    fn reason(place: &Result<Place, Finding>) -> &'static str {
        place.as_ref().map_or_else(|finding| finding.reason, |_| "bound")
    }

    #[test]
    fn a_guest_that_arrives_is_bound_when_it_runs_and_one_that_leaves_until_it_has_left() {
        for (run_state, expected) in [
            ("inmigrate", "GuestArriving"),
            ("running", "bound"),
            ("paused", "bound"),
            ("finish-migrate", "bound"),
            ("postmigrate", "GuestLeft"),
        ] {
            let ports = bound(&[("vm1", guest(run_state, tap("a")))]);
            assert_eq!(reason(&ports[&id("vm1")]), expected, "{run_state}");
        }
    }

    #[test]
    fn a_claim_to_a_neighbours_backing_is_a_conflict_and_leaves_the_neighbour_bound() {
        let claim = BackingView::Contested { reason: "process 7 holds it".into() };
        let ports =
            bound(&[("thief", guest("running", claim)), ("victim", guest("running", tap("a")))]);
        assert_eq!(reason(&ports[&id("thief")]), "BackingContested");
        assert_eq!(reason(&ports[&id("victim")]), "bound");
    }

    #[test]
    fn a_backing_that_two_guests_have_is_nobodys() {
        let ports =
            bound(&[("vm1", guest("running", tap("a"))), ("vm2", guest("running", tap("a")))]);
        assert!(ports.values().all(|place| reason(place) == "BackingContested"));
        let ports =
            bound(&[("vm1", guest("running", tap("a"))), ("vm2", guest("running", tap("b")))]);
        assert!(ports.values().all(|place| reason(place) == "bound"));
    }
}
