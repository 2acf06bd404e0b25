//! The probe of each adapter in switchdev mode, once for each representor that it is asked at.
//!
//! In: representors that offload, which only then take rules for hardware. Out: the adapter's
//! capabilities in World. It works on a connection of its own, so that flows need not wait for it.

use std::sync::Arc;

use api::{resources::EswitchMode, types::Id};
use tc_flows::{Ifindex, NetlinkKernel};
use tracing::{info, warn};

use super::{Finished, Owner, Readiness};
use crate::{
    apply::probe::{PROBE_OWNER, probe},
    capability::{Capabilities, Driver},
    world::AdapterView,
};

/// The probe of one adapter.
#[derive(Debug, Default)]
pub(super) struct Probe {
    /// The representor that it was last asked at.
    at: Option<Ifindex>,
    /// Whether it could not be asked there.
    failed: bool,
    capabilities: Option<Arc<Capabilities>>,
}

impl Probe {
    /// What is known of an adapter that looks like this: nothing, once the representor that it was
    /// asked at is gone.
    pub(super) fn capabilities_of(&mut self, view: &AdapterView) -> Option<Arc<Capabilities>> {
        let there = |at: Ifindex| {
            let representors = view.vfs.values().filter_map(|vf| vf.representor.as_ref());
            representors.into_iter().any(|netdev| netdev.ifindex == at)
        };
        if !self.at.is_some_and(there) {
            *self = Probe::default();
        }
        self.capabilities.clone()
    }

    /// Has it asked again where it could not be.
    pub(super) fn retry(&mut self) {
        if self.failed {
            *self = Probe::default();
        }
    }
}

impl Owner {
    /// Asks adapters that were not asked yet.
    pub(super) fn probe_adapters(&mut self) {
        for (id, view) in &self.world.adapters {
            let Some(state) = self.adapters.get_mut(id) else { continue };
            let (Some(EswitchMode::Switchdev), Some(uplink), None) =
                (view.mode, &view.uplink, state.probe.at)
            else {
                continue;
            };
            // Always the same one: there the next probe finds what is left of one that was killed.
            let mut representors = view.vfs.values().filter_map(|vf| vf.representor.as_ref());
            let Some(at) = representors.next().map(|netdev| netdev.ifindex) else { continue };
            let readiness = state.readiness.get(&at);
            if readiness.is_none_or(|readiness| *readiness == Readiness::OffloadAsked) {
                continue;
            }
            state.probe.at = Some(at);
            let driver = Driver::new(view.driver.as_deref(), uplink.ifindex, at);
            let (id, finished) = (id.clone(), self.finished_to.clone());
            tokio::task::spawn_blocking(move || {
                let asked = NetlinkKernel::open(PROBE_OWNER)
                    .and_then(|mut kernel| probe(&mut kernel, &driver));
                let asked = asked.map_err(|error| error.to_string());
                finished.send(Finished::Probed(id, at, asked)).ok();
            });
        }
    }

    pub(super) fn probed(&mut self, id: &Id, at: Ifindex, asked: Result<Capabilities, String>) {
        let Some(state) = self.adapters.get_mut(id).filter(|s| s.probe.at == Some(at)) else {
            return;
        };
        match asked {
            Ok(capabilities) => {
                let denied = capabilities.abilities.iter().filter(|(_, c)| !c.available);
                let denied: Vec<&str> = denied.map(|(ability, _)| ability.as_str()).collect();
                info!(adapter = %id, profile = capabilities.profile, ?denied, "hardware asked");
                state.probe.capabilities = Some(Arc::new(capabilities));
            }
            Err(error) => {
                warn!(adapter = %id, error, "hardware could not be asked");
                state.probe.failed = true;
            }
        }
        if let Some(view) = self.world.adapters.get_mut(id) {
            view.capabilities = state.probe.capabilities.clone();
            self.dirty.adapters.insert(id.clone());
        }
    }
}
