//! Which ports a guest or a network has: the planner's way from what changed to whom it concerns.
//!
//! In: the intent. Out: ids, in order of creation within a network. Nothing is decided here.

use std::collections::{BTreeMap, BTreeSet};

use api::{resources::PortFunction, types::Id};

use crate::intent::Intent;

/// The ports of guests and networks.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    ports: BTreeMap<Id, Entry>,
    of_guest: BTreeMap<Id, BTreeSet<Id>>,
    of_network: BTreeMap<Id, BTreeSet<(u64, Id)>>,
}

#[derive(Debug)]
struct Entry {
    created: u64,
    guest: Option<Id>,
    networks: BTreeSet<Id>,
}

impl Roster {
    /// Every port that was there at the last update.
    pub(crate) fn ports(&self) -> impl Iterator<Item = &Id> {
        self.ports.keys()
    }

    /// The ports of functions of this guest.
    pub(crate) fn of_guest(&self, guest: &Id) -> impl Iterator<Item = &Id> {
        self.of_guest.get(guest).into_iter().flatten()
    }

    /// The ports attached to this network, in order of creation.
    pub(crate) fn of_network(&self, network: &Id) -> impl Iterator<Item = &Id> {
        self.of_network.get(network).into_iter().flatten().map(|(_, port)| port)
    }

    /// The networks that this port is attached to.
    pub(crate) fn networks(&self, port: &Id) -> impl Iterator<Item = &Id> {
        self.ports.get(port).into_iter().flat_map(|entry| &entry.networks)
    }

    /// Looks up these ports again.
    pub(crate) fn update(&mut self, intent: &Intent, ports: &BTreeSet<Id>) {
        for id in ports {
            if let Some(Entry { created, guest, networks }) = self.ports.remove(id) {
                if let Some(guest) = guest {
                    forget(&mut self.of_guest, &guest, id);
                }
                for network in networks {
                    forget(&mut self.of_network, &network, &(created, id.clone()));
                }
            }
            let Some(port) = intent.ports.get(id) else { continue };
            let guest = match &port.spec.function {
                PortFunction::GuestVf { guest, .. } => Some(guest.clone()),
                _ => None,
            };
            let networks: BTreeSet<Id> =
                port.spec.attachments.iter().map(|attachment| attachment.network.clone()).collect();
            if let Some(guest) = &guest {
                self.of_guest.entry(guest.clone()).or_default().insert(id.clone());
            }
            for network in &networks {
                let ports = self.of_network.entry(network.clone()).or_default();
                ports.insert((port.created, id.clone()));
            }
            self.ports.insert(id.clone(), Entry { created: port.created, guest, networks });
        }
    }
}

fn forget<Member: Ord>(index: &mut BTreeMap<Id, BTreeSet<Member>>, key: &Id, member: &Member) {
    if let Some(members) = index.get_mut(key) {
        members.remove(member);
        if members.is_empty() {
            index.remove(key);
        }
    }
}
