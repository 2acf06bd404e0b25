//! Rates on their way to devlink: what each VF's rate object was told, what came of it.
//!
//! In: the rate program of an adapter, snapshots of its rate objects. Out: writes of what differs.
//! What a driver refuses is not asked again until something else is wanted, and every ten seconds.

use std::collections::BTreeMap;

use api::types::Id;
use tracing::info;

use super::{Finished, Owner, measuring};
use crate::{
    eswitch::{KernelRefusal, devlink::RateChange},
    plan::rate::RateProgram,
    world::{AdapterView, LeafRate},
};

/// The writes to the rate objects of one adapter.
#[derive(Debug, Default)]
pub(super) struct RateWrites {
    vfs: BTreeMap<u16, RateWrite>,
}

#[derive(Debug, Default)]
struct RateWrite {
    /// What it was told, until a snapshot shows something else.
    told: Option<LeafRate>,
    refused: Option<(LeafRate, KernelRefusal)>,
    writing: bool,
}

impl RateWrites {
    /// A new snapshot: what looks otherwise than before is compared anew.
    pub(super) fn seen(&mut self, before: Option<&AdapterView>, view: &AdapterView) {
        let leaf = |view: Option<&AdapterView>, vf: u16| {
            view.and_then(|view| view.eswitch.as_ref()?.leaves.get(&vf).cloned())
        };
        for (vf, write) in &mut self.vfs {
            if leaf(before, *vf) != leaf(Some(view), *vf) {
                write.told = None;
            }
        }
        let leaves = view.eswitch.as_ref().map(|eswitch| &eswitch.leaves);
        self.vfs.retain(|vf, _| leaves.is_some_and(|leaves| leaves.contains_key(vf)));
    }

    /// Time has passed: what was refused is asked for again.
    pub(super) fn retry(&mut self) {
        for write in self.vfs.values_mut() {
            if write.refused.is_some() {
                write.told = None;
            }
        }
    }

    /// What was refused, by VF.
    pub(super) fn refused(&self) -> impl Iterator<Item = (u16, &KernelRefusal)> {
        self.vfs.iter().filter_map(|(vf, write)| Some((*vf, &write.refused.as_ref()?.1)))
    }

    /// Why a VF has not the rate that it should have.
    pub(super) fn refusal_of(&self, vf: u16) -> Option<&KernelRefusal> {
        self.vfs.get(&vf)?.refused.as_ref().map(|(_, refusal)| refusal)
    }
}

impl Owner {
    /// Writes rates that differ; says whether there is work under way.
    pub(super) fn drive_rates(&mut self, id: &Id, program: &RateProgram) -> bool {
        let view = self.world.adapters.get(id).and_then(|adapter| adapter.eswitch.as_ref());
        let (Some(view), Some(policy)) = (view, self.eswitches.get(id)) else { return false };
        let state = self.adapters.entry(id.clone()).or_default();
        let mut busy = false;
        for (vf, wanted) in &program.leaves {
            let Some((port, has)) = view.leaves.get(vf) else { continue };
            let write = state.rates.vfs.entry(*vf).or_default();
            if write.refused.as_ref().is_some_and(|(refused, _)| refused != wanted) {
                write.refused = None;
                write.told = None;
            }
            if !write.writing && has.rate != *wanted && write.told != Some(*wanted) {
                write.told = Some(*wanted);
                write.writing = true;
                let (devlink, device) = (self.outlets.eswitch.devlink(), policy.device.clone());
                let change = RateChange::between(has.rate, *wanted);
                let (port, vf, wanted) = (*port, *vf, *wanted);
                let (id, finished) = (id.clone(), self.finished_to.clone());
                tokio::spawn(async move {
                    let result = devlink.set_rate(&device, port, change).await;
                    finished.send(Finished::RateSet(id, vf, wanted, result)).ok();
                });
            }
            busy |= write.writing;
        }
        busy
    }

    pub(super) fn rate_set(
        &mut self,
        id: &Id,
        vf: u16,
        rate: LeafRate,
        result: Result<(), KernelRefusal>,
    ) {
        self.outlets.host.look_again();
        self.metrics.tally("rate", measuring::answer(&result));
        let vfs = self.adapters.get_mut(id).map(|state| &mut state.rates.vfs);
        let Some(write) = vfs.and_then(|vfs| vfs.get_mut(&vf)) else { return };
        write.writing = false;
        let refused = result.err().map(|refusal| (rate, refusal));
        if refused != write.refused
            && let Some((_, refusal)) = &refused
        {
            info!(adapter = %id, vf, %refusal, "rate refused");
            self.metrics.errors.with_label_values(&["rates"]).inc();
        }
        write.refused = refused;
    }
}
