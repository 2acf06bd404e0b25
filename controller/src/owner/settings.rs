//! VF settings on their way to the driver: what each VF was told, what came of it.
//!
//! In: the legacy program of an adapter, snapshots of what its VFs have. Out: writes, one at a time
//! for each VF, of what differs and nothing else. What comes within a moment is written at once,
//! since some drivers reset a running VF at every write. What the driver refuses is not asked again
//! until something else is wanted of that VF, except where time can help.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use api::{resources::VfSettings, types::Id};
use nix::errno::Errno;
use tracing::{debug, info, warn};

use super::{Finished, Owner, drift::Repairs, measuring};
use crate::{
    apply::settings::{self, Refused},
    eswitch::{KernelRefusal, VfSetting},
    plan::legacy::{LegacyProgram, VfProgram},
    world::AdapterView,
};

/// How long changes of a VF are gathered before they are written.
const GATHERING: Duration = Duration::from_millis(50);

/// How long after a write a snapshot may still show what was before.
const READ_BACK: Duration = Duration::from_secs(2);

/// The writes to the VFs of one adapter.
#[derive(Debug, Default)]
pub(super) struct VfWrites {
    vfs: BTreeMap<u16, VfWrite>,
}

#[derive(Debug, Default)]
struct VfWrite {
    /// What the plan wanted when it was written last.
    wanted: Option<VfProgram>,
    /// What it was told, until a snapshot shows something else.
    told: Option<(VfProgram, Instant)>,
    /// Whether it was seen as it should be since.
    held: bool,
    repairs: Repairs,
    refused: Refused,
    /// Refusals that may be over by now are asked again.
    ask_again: bool,
    stage: Stage,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    #[default]
    Idle,
    Gathering,
    Gathered,
    Writing,
}

/// How far a VF is on its way to its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum VfState {
    /// It has them.
    Set,
    /// They are on their way.
    Pending,
    /// The driver has refused some.
    Refused(Vec<String>),
    /// The driver has accepted these and does not show them.
    Ignored(Vec<VfSetting>),
}

impl VfWrites {
    /// A new snapshot: what looks otherwise than before is compared anew.
    pub(super) fn seen(&mut self, before: Option<&AdapterView>, view: &AdapterView) {
        self.vfs.retain(|index, _| view.vfs.contains_key(index));
        for (index, write) in &mut self.vfs {
            let was = before.and_then(|before| before.vfs.get(index));
            let is = view.vfs.get(index);
            if was.map(|vf| &vf.settings) != is.map(|vf| &vf.settings) {
                write.told = None;
            }
        }
    }

    /// Time has passed: what it can help is asked for again.
    pub(super) fn retry(&mut self) {
        for write in self.vfs.values_mut() {
            if write.refused.iter().any(|(setting, refusal)| time_can_help(*setting, refusal)) {
                write.told = None;
                write.ask_again = true;
            }
        }
    }

    /// What the driver has refused of each VF.
    pub(super) fn refused(&self) -> impl Iterator<Item = (u16, &Refused)> {
        self.vfs.iter().map(|(index, write)| (*index, &write.refused))
    }

    /// VFs whose settings somebody else changes again and again, with the number of repairs within
    /// the last minute.
    pub(super) fn fights(&self) -> impl Iterator<Item = (u16, usize)> {
        self.vfs.iter().filter_map(|(index, write)| Some((*index, write.repairs.fight()?)))
    }

    /// How far a VF is that shows `has` and should be `wanted`.
    pub(super) fn state(
        &self,
        index: u16,
        has: Option<&VfSettings>,
        wanted: &VfProgram,
    ) -> VfState {
        let Some(write) = self.vfs.get(&index) else {
            return match settings::change(has, wanted) {
                None => VfState::Set,
                Some(_) => VfState::Pending,
            };
        };
        if !write.refused.is_empty() {
            return VfState::Refused(write.refused.values().map(ToString::to_string).collect());
        }
        let ignored = has.map(|has| settings::ignored(has, wanted, &write.refused));
        match (&write.told, ignored) {
            (_, Some(ignored)) if ignored.is_empty() => VfState::Set,
            (Some((told, when)), Some(ignored))
                if told == wanted && write.stage == Stage::Idle && when.elapsed() > READ_BACK =>
            {
                VfState::Ignored(ignored)
            }
            _ => VfState::Pending,
        }
    }
}

/// Whether a setting that was refused like this may be taken later: a VF that resets, a PF whose
/// link is down (igb takes rates only with one, `igb_ndo_set_vf_bw`), an answer that was lost.
fn time_can_help(setting: VfSetting, refusal: &KernelRefusal) -> bool {
    let passing = [Errno::EAGAIN, Errno::EBUSY, Errno::ENETDOWN, Errno::EINTR];
    let errno = Errno::from_raw(refusal.errno);
    refusal.is_lost()
        || passing.contains(&errno)
        || (setting == VfSetting::Rate && errno == Errno::EINVAL)
}

impl Owner {
    /// Writes VF settings that differ; says whether there is work under way.
    pub(super) fn drive_settings(&mut self, id: &Id, program: &LegacyProgram) -> bool {
        let Some(pf) = &program.pf else { return false };
        let view = self.world.adapters.get(id);
        let state = self.adapters.entry(id.clone()).or_default();
        let mut busy = false;
        for (index, wanted) in &program.vfs {
            let index = *index;
            let write = state.settings.vfs.entry(index).or_default();
            if matches!(write.stage, Stage::Gathering | Stage::Writing) {
                busy = true;
                continue;
            }
            let now = Instant::now();
            let same = write.wanted.as_ref() == Some(wanted);
            if !same {
                write.refused.clear();
                write.held = false;
            }
            let guarded = settings::guarded(wanted, &write.refused);
            let has = view.and_then(|v| v.vfs.get(&index)).and_then(|vf| vf.settings.as_ref());
            write.repairs.forget(now);
            if same && write.repairs.pause(now) {
                continue;
            }
            match has.map(|has| settings::ignored(has, &guarded, &write.refused)) {
                Some(differ) if differ.is_empty() => write.held = same,
                Some(differ) if std::mem::take(&mut write.held) => {
                    warn!(adapter = %id, vf = index, settings = ?differ,
                        "VF settings were changed by somebody else; repairing");
                    let count = self.metrics.drift.with_label_values(&[id.as_str(), "vf_setting"]);
                    count.inc_by(differ.len() as u64);
                    write.repairs.note(now);
                }
                _ => {}
            }
            let told = write.told.as_ref().is_some_and(|(told, _)| *told == guarded);
            let change = settings::change(has, &guarded).filter(|_| !told).map(|change| {
                let again = write.ask_again;
                let refused = write.refused.iter();
                let refused = refused.filter(|(s, why)| !(again && time_can_help(**s, why)));
                settings::withhold(change, refused.map(|(setting, _)| setting))
            });
            let Some(change) = change.filter(|change| !change.settings().is_empty()) else {
                write.wanted = Some(wanted.clone());
                write.stage = Stage::Idle;
                continue;
            };
            busy = true;
            let finished = self.finished_to.clone();
            if write.stage == Stage::Idle {
                write.stage = Stage::Gathering;
                let id = id.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(GATHERING).await;
                    finished.send(Finished::VfGathered(id, index)).ok();
                });
                continue;
            }
            debug!(adapter = %id, vf = index, ?change, "VF settings");
            write.wanted = Some(wanted.clone());
            write.told = Some((guarded, now));
            write.ask_again = false;
            write.stage = Stage::Writing;
            let (eswitch, ifindex, id) = (self.outlets.eswitch.clone(), pf.ifindex, id.clone());
            tokio::spawn(async move {
                let results = eswitch.set_vf(ifindex, index, &change).await;
                finished.send(Finished::VfWritten(id, index, results)).ok();
            });
        }
        busy
    }

    pub(super) fn vf_gathered(&mut self, id: &Id, index: u16) {
        let vfs = self.adapters.get_mut(id).map(|state| &mut state.settings.vfs);
        if let Some(write) = vfs.and_then(|vfs| vfs.get_mut(&index))
            && write.stage == Stage::Gathering
        {
            write.stage = Stage::Gathered;
        }
    }

    pub(super) fn vf_written(
        &mut self,
        id: &Id,
        index: u16,
        results: Vec<(VfSetting, Result<(), KernelRefusal>)>,
    ) {
        self.outlets.host.look_again();
        let vfs = self.adapters.get_mut(id).map(|state| &mut state.settings.vfs);
        let Some(write) = vfs.and_then(|vfs| vfs.get_mut(&index)) else { return };
        write.stage = Stage::Idle;
        for (setting, result) in results {
            self.metrics.tally("vf_setting", measuring::answer(&result));
            match result {
                Ok(()) => {
                    write.refused.remove(&setting);
                }
                Err(refusal) => {
                    self.metrics.errors.with_label_values(&["vf_settings"]).inc();
                    if write.refused.get(&setting) != Some(&refusal) {
                        info!(adapter = %id, vf = index, %refusal, "setting refused");
                    }
                    write.refused.insert(setting, refusal);
                }
            }
        }
    }
}
