//! Second stage, the policy: which addresses each port may send from, and which may be promiscuous.
//!
//! A guest only asks. An address is admitted when it is fixed in the port's spec, or within what
//! the spec lets the guest choose; never when it is no station address, the adapter's own,
//! reserved in one of the port's networks, or held there by another port. First come keeps it; only
//! an address that ports name in their pairs is one that all of these may have. A refused request
//! takes nothing away that was admitted before.
//!
//! Promiscuous mode is had where the spec allows it: by a guest that is seen to ask for it, and by
//! whatever cannot be seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use api::{
    resources::{ControlQueue, Multicast, PortFunction, PortSpec, Promiscuous, RefusedMac, RxMode},
    types::{Id, MacAddr},
};

use super::{
    Finding,
    bind::{Bindings, Place},
};
use crate::{
    intent::{Address, Claims, Intent},
    world::{GuestFunction, RxFilter, World},
};

/// How often one decision follows from another at most: more than any history that was tried needs.
const PASSES: usize = 8;

/// A guest that asks for more groups gets all: each costs a rule at every hook of its networks.
const GROUPS_MAX: usize = 32;

/// The outcome of this stage, and what it takes to bring it up to date.
#[derive(Debug, Default)]
pub struct Admissions {
    /// What each port may send from.
    ports: BTreeMap<Id, Admission>,
    /// Who holds which address now.
    claims: Claims,
    /// The addresses that each port asks for or holds.
    concerns: BTreeMap<Id, BTreeSet<Address>>,
    /// The same by address.
    concerned: BTreeMap<Address, BTreeSet<Id>>,
}

/// What a port may send from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Admission {
    /// Admitted addresses, fixed ones first.
    pub macs: Vec<MacAddr>,
    /// What the guest asked for and does not get.
    pub refused: Vec<RefusedMac>,
    /// Another port holds an address that this one needs.
    pub conflict: Option<Finding>,
    /// Whether it receives frames that nobody here is known to want.
    pub promiscuous: bool,
    /// The guest asks for every frame and may not have them.
    pub promiscuous_refused: bool,
    /// The groups that its guest asks for, in order, where that decides what it gets; none where it
    /// gets all.
    pub groups: Option<Arc<[MacAddr]>>,
}

impl Admissions {
    /// Nothing decided yet; these addresses are held.
    pub fn holding(claims: Claims) -> Admissions {
        Admissions { claims, ..Admissions::default() }
    }

    /// What a port may send from.
    pub fn of(&self, port: &Id) -> Option<&Admission> {
        self.ports.get(port)
    }

    /// Who holds which address.
    pub const fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Decides anew for these ports, and for all whose decision may hang on theirs; says for which.
    /// A port that stands nowhere keeps what it held only while that is its own by spec; what a
    /// guest chose is free again once its function is gone.
    pub(super) fn update(
        &mut self,
        world: &World,
        intent: &Intent,
        bindings: &Bindings,
        ports: &BTreeSet<Id>,
    ) -> BTreeSet<Id> {
        let affected = self.affected(world, intent, bindings, ports);
        // What one port is told of another must hold when all have been decided for.
        for _ in 0..PASSES {
            if !self.decide(world, intent, bindings, &affected) {
                break;
            }
        }
        affected
    }

    /// Decides for these ports once; says whether that changed anything.
    fn decide(
        &mut self,
        world: &World,
        intent: &Intent,
        bindings: &Bindings,
        affected: &BTreeSet<Id>,
    ) -> bool {
        let mut changed = false;
        let mut wishes: Vec<(u64, Wish<'_>)> = Vec::with_capacity(affected.len());
        for id in affected {
            let held = self.claims.take_from(id);
            match intent.ports.get(id) {
                Some(port) => {
                    wishes.push((port.created, Wish::of(world, bindings, id, &port.spec, held)));
                }
                None => changed |= self.ports.remove(id).is_some() || !held.is_empty(),
            }
        }
        wishes.sort_by_key(|(created, wish)| (*created, wish.id));
        // Those who held an address and still want it come before those who ask for it now.
        for (_, wish) in &wishes {
            let wanted: BTreeSet<MacAddr> = wish.fixed().chain(wish.chosen()).collect();
            for (network, mac) in &wish.held {
                if wanted.contains(mac) && wish.networks().any(|wanted| wanted == network) {
                    self.claims.give((network.clone(), *mac), wish.id.clone());
                }
            }
        }
        for (_, wish) in &wishes {
            let admission = wish.decide(world, intent, &mut self.claims);
            changed |= self.ports.get(wish.id) != Some(&admission);
            self.ports.insert(wish.id.clone(), admission);
        }
        changed || wishes.iter().any(|(_, wish)| !self.claims.of_port(wish.id).eq(&wish.held))
    }

    /// These ports, and all with whom they share an address that one asks for or holds, directly
    /// or by way of others.
    fn affected(
        &mut self,
        world: &World,
        intent: &Intent,
        bindings: &Bindings,
        ports: &BTreeSet<Id>,
    ) -> BTreeSet<Id> {
        let mut waiting: Vec<Id> = Vec::new();
        for id in ports {
            for address in self.concerns.remove(id).unwrap_or_default() {
                if let Some(others) = self.concerned.get_mut(&address) {
                    others.remove(id);
                    waiting.extend(others.iter().cloned());
                    if others.is_empty() {
                        self.concerned.remove(&address);
                    }
                }
            }
            let mut concerns: BTreeSet<Address> = self.claims.of_port(id).cloned().collect();
            if let Some(port) = intent.ports.get(id) {
                let wish = Wish::of(world, bindings, id, &port.spec, concerns.clone());
                let held = wish.held.iter().map(|(_, mac)| *mac);
                let macs: BTreeSet<MacAddr> =
                    wish.fixed().chain(wish.chosen()).chain(held).collect();
                for network in wish.networks() {
                    concerns.extend(macs.iter().map(|mac| (network.clone(), *mac)));
                }
            }
            for address in &concerns {
                self.concerned.entry(address.clone()).or_default().insert(id.clone());
            }
            if !concerns.is_empty() {
                self.concerns.insert(id.clone(), concerns);
            }
            waiting.push(id.clone());
        }
        let mut affected = BTreeSet::new();
        while let Some(id) = waiting.pop() {
            if affected.contains(&id) {
                continue;
            }
            for address in self.concerns.get(&id).into_iter().flatten() {
                let others = self.concerned.get(address).into_iter().flatten();
                waiting.extend(others.filter(|other| **other != id).cloned());
            }
            affected.insert(id);
        }
        affected
    }
}

/// The guest's function, where the port is a guest's and stands somewhere.
fn function_of<'w>(
    world: &'w World,
    spec: &PortSpec,
    place: Option<&Place>,
) -> Option<&'w GuestFunction> {
    place?;
    let PortFunction::GuestVf { guest, device } = &spec.function else { return None };
    world.guests.get(guest)?.functions.get(device)
}

/// Whether other ports may have this address of a port's as well: one that only its pairs name, as
/// routers do that take over from each other.
pub(super) fn is_shared(spec: &PortSpec, mac: MacAddr) -> bool {
    let named = spec.allowed_address_pairs.iter().any(|pair| pair.mac == Some(mac));
    named && !spec.macs.contains(&mac)
}

/// Whether a guest asks for every frame. A virtio device is promiscuous until its driver says
/// something else: only together with anything that a driver has said is that a request.
fn asks_for_everything(function: &GuestFunction) -> bool {
    let Some(filter) = &function.filter else { return false };
    let said = !filter.multicast.is_empty()
        || !filter.unicast.is_empty()
        || !filter.vlans.is_empty()
        || filter.multicast_overflow
        || filter.unicast_overflow
        || filter.all_multicast;
    filter.promiscuous && said && function.visibility.rx_mode != RxMode::NotNegotiated
}

/// Whether it can be seen what the guest asks for.
fn is_seen(function: &GuestFunction) -> bool {
    function.visibility.control_queue != ControlQueue::Hidden
        && function.visibility.rx_mode != RxMode::NotNegotiated
}

/// A port and what it wants.
struct Wish<'a> {
    id: &'a Id,
    spec: &'a PortSpec,
    place: Option<&'a Place>,
    function: Option<&'a GuestFunction>,
    filter: Option<&'a RxFilter>,
    /// What it held before.
    held: BTreeSet<Address>,
}

impl<'a> Wish<'a> {
    fn of(
        world: &'a World,
        bindings: &'a Bindings,
        id: &'a Id,
        spec: &'a PortSpec,
        held: BTreeSet<Address>,
    ) -> Wish<'a> {
        let place = bindings.place(id).and_then(|place| place.as_ref().ok());
        let function = function_of(world, spec, place);
        let filter = function.and_then(|function| function.filter.as_ref());
        Wish { id, spec, place, function, filter, held }
    }

    fn networks(&self) -> impl Iterator<Item = &'a Id> {
        self.spec.attachments.iter().map(|attachment| &attachment.network)
    }

    /// The addresses of the spec, those of its pairs among them.
    fn fixed(&self) -> impl Iterator<Item = MacAddr> + use<'a> {
        let spec = self.spec;
        let of_pairs = spec.allowed_address_pairs.iter().filter_map(|pair| pair.mac);
        let of_pairs = of_pairs.filter(|mac| !spec.macs.contains(mac));
        let mut seen = BTreeSet::new();
        spec.macs.iter().copied().chain(of_pairs.filter(move |mac| seen.insert(*mac)))
    }

    /// The addresses that the guest asks for beyond those, the one in force first.
    fn chosen(&self) -> impl Iterator<Item = MacAddr> + use<'a> {
        let fixed: BTreeSet<MacAddr> = self.fixed().collect();
        let filter = self.filter;
        filter
            .map(|filter| filter.main_mac)
            .into_iter()
            .chain(filter.into_iter().flat_map(|filter| filter.unicast.iter().copied()))
            .filter(move |mac| !fixed.contains(mac))
    }

    fn decide(&self, world: &World, intent: &Intent, claims: &mut Claims) -> Admission {
        let mut admission = Admission::default();
        for mac in self.fixed() {
            match self.take(intent, claims, mac) {
                Ok(()) => admission.macs.push(mac),
                Err(holder) => {
                    admission.conflict.get_or_insert_with(|| {
                        Finding::new(
                            "MacTaken",
                            format!(
                                "{mac} is held by port `{holder}` in the same network; give one of \
                                 the two another address"
                            ),
                        )
                    });
                }
            }
        }
        let max = self.spec.guest_macs.as_ref().map_or(0, |choice| usize::from(choice.max));
        let mut chosen: Vec<MacAddr> = Vec::new();
        for mac in self.chosen() {
            if chosen.contains(&mac) || admission.refused.iter().any(|refused| refused.mac == mac) {
                continue;
            }
            let verdict = self.permitted(world, intent, mac).and_then(|()| {
                if chosen.len() >= max {
                    return Err(format!("the port's limit of {max} guest addresses is reached"));
                }
                self.take(intent, claims, mac).map_err(|holder| {
                    admission.conflict.get_or_insert_with(|| {
                        Finding::new(
                            "MacTaken",
                            format!("the guest asked for {mac}, which port `{holder}` holds"),
                        )
                    });
                    format!("port `{holder}` holds it in the same network")
                })
            });
            match verdict {
                Ok(()) => chosen.push(mac),
                Err(reason) => admission.refused.push(RefusedMac { mac, reason }),
            }
        }
        if !admission.refused.is_empty() {
            let held: BTreeSet<MacAddr> = self.held.iter().map(|(_, mac)| *mac).collect();
            let kept: Vec<MacAddr> = held
                .into_iter()
                .filter(|mac| !admission.macs.contains(mac) && !chosen.contains(mac))
                .take(max.saturating_sub(chosen.len()))
                .collect();
            for mac in kept {
                if self.permitted(world, intent, mac).is_ok()
                    && self.take(intent, claims, mac).is_ok()
                {
                    chosen.push(mac);
                }
            }
        }
        admission.macs.extend(chosen);
        let asks = self.function.is_some_and(asks_for_everything);
        match self.spec.promiscuous {
            Promiscuous::Allow => {
                let unseen = self.function.is_none_or(|function| !is_seen(function));
                admission.promiscuous = self.place.is_some() && (asks || unseen);
            }
            Promiscuous::Deny => admission.promiscuous_refused = asks,
        }
        admission.groups = self.groups(intent);
        admission
    }

    /// The groups that the guest asks for, where one of the port's networks wants to know.
    fn groups(&self, intent: &Intent) -> Option<Arc<[MacAddr]>> {
        let narrows = |network: &Id| {
            let network = intent.networks.get(network);
            network.is_some_and(|network| network.spec.multicast == Multicast::Declared)
        };
        let filter = self.filter.filter(|_| self.function.is_some_and(is_seen))?;
        let all = filter.promiscuous || filter.all_multicast || filter.multicast_overflow;
        if all || filter.multicast.len() > GROUPS_MAX || !self.networks().any(narrows) {
            return None;
        }
        // Broadcast is everybody's.
        let group = |mac: &&MacAddr| mac.0[0] & 1 == 1 && mac.0 != [0xff; 6];
        let groups: BTreeSet<MacAddr> = filter.multicast.iter().filter(group).copied().collect();
        Some(groups.into_iter().collect())
    }

    /// Claims `mac` in all of the port's networks, or in none: the error is the port in the way. An
    /// address that several may have stays with the first.
    fn take(&self, intent: &Intent, claims: &mut Claims, mac: MacAddr) -> Result<(), Id> {
        let shares = |port: &Id| {
            let other = intent.ports.get(port);
            is_shared(self.spec, mac) && other.is_some_and(|other| is_shared(&other.spec, mac))
        };
        let mut free: Vec<&Id> = Vec::new();
        for network in self.networks().filter(|id| intent.networks.contains_key(*id)) {
            match claims.holder(network, mac) {
                Some(holder) if holder == self.id => {}
                Some(holder) if shares(holder) => {}
                Some(holder) => return Err(holder.clone()),
                None => free.push(network),
            }
        }
        for network in free {
            claims.give((network.clone(), mac), self.id.clone());
        }
        Ok(())
    }

    /// Whether the guest may choose `mac` at all. The error says why not.
    fn permitted(&self, world: &World, intent: &Intent, mac: MacAddr) -> Result<(), String> {
        let Some(choice) = &self.spec.guest_macs else {
            return Err("the port allows no addresses of the guest's choosing (guest_macs)".into());
        };
        if !mac.is_station() {
            return Err("it is a group address or zero".into());
        }
        if !choice.allow.is_empty() && !choice.allow.iter().any(|prefix| prefix.contains(mac)) {
            return Err("it is outside the port's allowed prefixes (guest_macs.allow)".into());
        }
        let reserved = |network: &&Id| {
            intent.networks.get(*network).is_some_and(|n| n.spec.reserved_macs.contains(&mac))
        };
        if let Some(network) = self.networks().find(reserved) {
            return Err(format!("network `{network}` reserves it"));
        }
        let adapters = self.place.and_then(|place| world.adapters.get(&place.adapter));
        let own = |adapter: &crate::world::AdapterView| {
            [&adapter.uplink, &adapter.pf].into_iter().flatten().any(|n| n.mac == Some(mac))
        };
        if adapters.is_some_and(own) {
            return Err("it is the adapter's own address".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use api::resources::{EswitchMode, Visibility};
    use serde_json::json;

    use super::*;
    use crate::{
        intent::Change,
        world::{AdapterView, BackingView, Connection, GuestView, NetdevView},
    };

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    /// What becomes of a port for a guest's function that shows this, with this permission.
    fn admitted(promiscuous: &str, filter: Option<RxFilter>, visibility: Visibility) -> Admission {
        let ifindex = tc_flows::Ifindex::new(1).unwrap();
        let tap = NetdevView { ifindex, name: "tap0".into(), mac: None };
        let adapter = AdapterView {
            handle: "soft-lab".into(),
            mode: Some(EswitchMode::Software),
            representors: [("tap0".to_owned(), tap)].into(),
            ..AdapterView::default()
        };
        let function = GuestFunction {
            pf: None,
            index: None,
            pci: None,
            enabled: true,
            filter,
            backing: BackingView::Netdev { name: "tap0".into() },
            source: None,
            visibility,
        };
        let guest = GuestView {
            connection: Connection::Connected,
            functions: [("vf0".to_owned(), function)].into(),
            ..GuestView::default()
        };
        let world = World {
            adapters: [(id("soft-lab"), adapter)].into(),
            guests: [(id("vm1"), guest)].into(),
        };
        let spec: PortSpec = serde_json::from_value(json!({
            "function": {"guest_vf": {"guest": "vm1", "device": "vf0"}},
            "attachments": [{"network": "blue"}],
            "macs": ["02:00:00:00:00:01"],
            "promiscuous": promiscuous,
        }))
        .unwrap();
        let mut intent = Intent::default();
        intent.apply(Change::Port(id("p"), Some(spec)));
        let ports = BTreeSet::from([id("p")]);
        let mut bindings = Bindings::default();
        bindings.look_at_guests(&world, &intent, &BTreeSet::from([id("vm1")]));
        bindings.update(&world, &intent, &ports);
        let mut admissions = Admissions::default();
        admissions.update(&world, &intent, &bindings, &ports);
        admissions.of(&id("p")).unwrap().clone()
    }

    fn filter(promiscuous: bool, vlans: Vec<u16>) -> RxFilter {
        RxFilter {
            main_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            unicast: Vec::new(),
            unicast_overflow: false,
            multicast: Vec::new(),
            multicast_overflow: false,
            all_multicast: false,
            vlans,
            promiscuous,
        }
    }

    fn outcome(admission: &Admission) -> (bool, bool) {
        assert_eq!(admission.macs, [MacAddr([2, 0, 0, 0, 0, 1])], "what it had it keeps");
        (admission.promiscuous, admission.promiscuous_refused)
    }

    #[test]
    fn a_guest_is_promiscuous_only_where_it_asks_for_it_and_may() {
        let seen = Visibility { control_queue: ControlQueue::Seen, ..Visibility::default() };
        let of = |permission, promiscuous| {
            outcome(&admitted(permission, Some(filter(promiscuous, vec![0])), seen))
        };
        assert_eq!(of("deny", true), (false, true));
        assert_eq!(of("deny", false), (false, false));
        assert_eq!(of("allow", true), (true, false));
        assert_eq!(of("allow", false), (false, false));
    }

    #[test]
    fn a_driver_that_has_said_nothing_yet_asks_for_nothing() {
        let seen = Visibility { control_queue: ControlQueue::Seen, ..Visibility::default() };
        for filter in [None, Some(filter(true, vec![]))] {
            assert_eq!(outcome(&admitted("deny", filter.clone(), seen)), (false, false));
            assert_eq!(outcome(&admitted("allow", filter, seen)), (false, false));
        }
    }

    #[test]
    fn where_it_cannot_be_seen_what_a_guest_asks_for_the_permission_decides() {
        for visibility in [
            Visibility { control_queue: ControlQueue::Hidden, ..Visibility::default() },
            Visibility { rx_mode: RxMode::NotNegotiated, ..Visibility::default() },
        ] {
            assert_eq!(outcome(&admitted("deny", None, visibility)), (false, false));
            assert_eq!(outcome(&admitted("allow", None, visibility)), (true, false));
        }
    }
}
