//! The shape of eswitches: mode and number of VFs, changed when a client asks for it.
//!
//! In: what a client asks for. Out: what that would change, or an order in the store; and then, one
//! after the other, its steps. An order says where to go, and where back if the kernel refuses a
//! step. A daemon that is killed in the middle finds the order when it starts, and goes on: each
//! step follows from what the NIC says then (`eswitch/sriov.rs`).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use api::{
    error::{ApiError, ResourceKind, ResourceRef},
    resources::{ConditionStatus, EswitchChange, EswitchMode, EswitchShape, EswitchSpec, PortLoss},
    server::Precondition,
    types::Id,
};
use tc_flows::Ifindex;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::{Finished, Owner, Write, conditions::Statement, measuring};
use crate::{
    eswitch::{
        KernelRefusal,
        devlink::DevlinkName,
        sriov::{self, HostNic},
    },
    intent::{Change, EswitchOrder, OrderStage},
    plan,
    world::{AdapterView, BackingView, NetdevView, VfView, World},
};

/// How long after an order is fulfilled its adapter may still be seen as it was.
const SETTLING: Duration = Duration::from_secs(3);

/// Interface indexes that no netdev has: of representors that are only thought of.
const THOUGHT_OF: u32 = 0x4000_0000;

/// What the configuration says of a NIC's eswitch.
#[derive(Debug, Clone)]
pub(crate) struct EswitchPolicy {
    /// The NIC.
    pub(crate) device: DevlinkName,
    /// Whether its mode and its number of VFs are ours to change.
    pub(crate) manage: bool,
    /// The most VFs that it may have.
    pub(crate) max_vfs: Option<u16>,
    /// The flows that its hardware has room for, where that is known.
    pub(crate) hardware_flows: Option<u64>,
}

/// What the configuration says of each NIC's eswitch.
pub(crate) type EswitchPolicies = BTreeMap<Id, EswitchPolicy>;

/// The orders under way.
#[derive(Debug, Default)]
pub(super) struct Orders {
    begun: BTreeMap<Id, Begun>,
}

/// An order that was begun in this run.
#[derive(Debug)]
struct Begun {
    order: EswitchOrder,
    running: bool,
    /// Why the way back is not free.
    stuck: Option<KernelRefusal>,
    ended: Option<Instant>,
}

impl Orders {
    /// Whether the steps of an adapter's order are being taken.
    pub(super) fn are_taken_at(&self, id: &Id) -> bool {
        self.begun.get(id).is_some_and(|begun| begun.running)
    }

    /// Time has passed: a way that was not free is tried again.
    pub(super) fn retry(&mut self) {
        self.begun.retain(|_, begun| begun.running || begun.order.target().is_none());
    }
}

/// What a client's wish comes to.
pub(super) struct Considered {
    pub(super) change: EswitchChange,
    /// Why it is not done.
    refusal: Option<ApiError>,
    order: Option<EswitchOrder>,
}

impl Considered {
    /// The order to store, or none where there is nothing to do.
    ///
    /// # Errors
    /// Why it is not done.
    pub(super) fn decide(self) -> Result<(EswitchChange, Option<EswitchOrder>), ApiError> {
        match self.refusal {
            Some(refusal) => Err(refusal),
            None => Ok((self.change, self.order)),
        }
    }
}

impl Owner {
    /// What it would come to if this adapter's eswitch became as asked for. Changes nothing.
    ///
    /// # Errors
    /// There is no such adapter, or it has no shape that could be compared.
    pub(super) fn consider(
        &self,
        id: &Id,
        spec: EswitchSpec,
        force: bool,
    ) -> Result<Considered, ApiError> {
        let kind = ResourceKind::Adapter;
        let missing = || ApiError::NotFound { kind, id: id.clone() };
        let view = self.world.adapters.get(id).ok_or_else(missing)?;
        let Some(policy) = self.eswitches.get(id) else {
            return Err(conflict(
                format!("software adapter `{id}` is made of plain netdevs and has no eswitch"),
                "ask for an adapter that is a NIC",
            ));
        };
        let now = shape(view).ok_or_else(|| {
            conflict(format!("adapter `{id}` is not there"), "see its condition Present")
        })?;
        let wanted = EswitchShape {
            mode: spec.mode.unwrap_or(now.mode),
            num_vfs: spec.num_vfs.unwrap_or(now.num_vfs),
        };
        let (uses, blockers) = self.uses(id, view);
        let refusal = self.refusal(id, view, policy, now, wanted).or_else(|| {
            let in_the_way = wanted != now && !force && !uses.is_empty();
            in_the_way.then(|| ApiError::Conflict {
                detail: format!("VFs of adapter `{id}` are in use: {}", uses.join(", ")),
                blockers,
                remedy: "take the guests off them first, or repeat with force=true: each VF is \
                         then removed under whoever uses it"
                    .into(),
            })
        });
        let change = EswitchChange {
            now,
            then: wanted,
            steps: sriov::way(now, wanted).iter().map(ToString::to_string).collect(),
            ports: self.losses(id, view, wanted),
            in_use: uses,
            refused: refusal.as_ref().map(|refusal| {
                let problem = refusal.problem();
                format!("{}; {}", problem.detail, problem.remedy.unwrap_or_default())
            }),
            started: false,
        };
        let stage = if wanted == now { OrderStage::Settled } else { OrderStage::Forward };
        let order = EswitchOrder { wanted, before: now, stage };
        let known = self.intent.eswitches.get(id).map(|stored| &stored.spec);
        let as_before =
            known.is_some_and(|known| known.wanted == order.wanted && known.stage == order.stage);
        Ok(Considered { change, refusal, order: (!as_before).then_some(order) })
    }

    /// Why this may not be done, whoever uses the VFs.
    fn refusal(
        &self,
        id: &Id,
        view: &AdapterView,
        policy: &EswitchPolicy,
        now: EswitchShape,
        wanted: EswitchShape,
    ) -> Option<ApiError> {
        if let Some((detail, remedy)) = forbidden(id, view, policy, wanted) {
            return Some(conflict(detail, remedy));
        }
        if wanted.mode != now.mode && view.eswitch.is_none() {
            let driver = view.driver.as_deref().unwrap_or("its driver");
            return Some(conflict(
                format!("{driver} has no eswitch mode: adapter `{id}` stays in legacy mode"),
                "leave `mode` out",
            ));
        }
        self.order_in_the_way(id)
    }

    /// An order that is not fulfilled yet keeps others off.
    pub(super) fn order_in_the_way(&self, id: &Id) -> Option<ApiError> {
        let order = &self.intent.eswitches.get(id)?.spec;
        let target = order.target()?;
        Some(conflict(
            format!("adapter `{id}` is on its way to {target}"),
            "wait until its condition Eswitch says that it is there",
        ))
    }

    /// Who uses the VFs of an adapter: for people, and as resources.
    fn uses(&self, id: &Id, view: &AdapterView) -> (Vec<String>, Vec<ResourceRef>) {
        let (mut uses, mut blockers) = (Vec::new(), Vec::new());
        for (port, plan) in &self.planner.plan().ports {
            if let Ok(place) = &plan.place
                && place.adapter == *id
                && let Some(vf) = place.vf
            {
                uses.push(format!("port {port} (VF {vf})"));
                blockers.push(ResourceRef { kind: ResourceKind::Port, id: port.clone() });
            }
        }
        for (guest, seen) in &self.world.guests {
            for function in seen.functions.values() {
                if let BackingView::Vf { handle, index } = &function.backing
                    && *handle == view.handle
                {
                    uses.push(format!("guest {guest} (VF {index})"));
                    blockers.push(ResourceRef { kind: ResourceKind::Guest, id: guest.clone() });
                }
            }
        }
        blockers.dedup();
        for (index, vf) in &view.vfs {
            if vf.driver.as_deref() == Some("vfio-pci") {
                uses.push(format!("vfio-pci (VF {index})"));
            }
        }
        (uses, blockers)
    }

    /// What ports would lose: the plan for a world in which the adapter has this shape, compared
    /// with the plan in force.
    fn losses(&self, id: &Id, view: &AdapterView, wanted: EswitchShape) -> Vec<PortLoss> {
        let mut world =
            World { adapters: self.world.adapters.clone(), guests: self.world.guests.clone() };
        world.adapters.insert(id.clone(), imagined(view, wanted));
        let claims = self.planner.claims();
        let then = plan::plan(&world, &self.intent, claims, &self.policies);
        let mut losses = Vec::new();
        for (port, now) in &self.planner.plan().ports {
            let here = now.place.as_ref().is_ok_and(|place| place.adapter == *id);
            let Some(after) = then.ports.get(port).filter(|_| here) else { continue };
            let mut loses: Vec<String> = Vec::new();
            loses.extend(after.place.as_ref().err().map(|finding| finding.message.clone()));
            let new = after.unmet.iter().filter(|finding| !now.unmet.contains(finding));
            loses.extend(new.map(|finding| finding.message.clone()));
            if !loses.is_empty() {
                losses.push(PortLoss { port: port.clone(), loses });
            }
        }
        losses
    }

    // ------------------------------------------------------------ orders

    /// Begins what is ordered and not begun; says whether there is work under way.
    pub(super) fn drive_eswitches(&mut self) -> bool {
        let mut busy = false;
        for (id, stored) in &self.intent.eswitches {
            let order = &stored.spec;
            let Some(target) = order.target() else { continue };
            let Some(policy) = self.eswitches.get(id) else { continue };
            busy = true;
            if self.orders.begun.get(id).is_some_and(|b| b.running || b.order == *order) {
                continue;
            }
            info!(adapter = %id, %target, "eswitch: beginning");
            let begun = Begun { order: order.clone(), running: true, stuck: None, ended: None };
            self.orders.begun.insert(id.clone(), begun);
            let nic = HostNic::new(policy.device.clone(), &self.outlets.eswitch);
            let (id, finished) = (id.clone(), self.finished_to.clone());
            tokio::spawn(async move {
                let result = sriov::bring(&nic, target).await;
                finished.send(Finished::Reshaped(id, result)).ok();
            });
        }
        busy
    }

    /// The steps of an order are taken, or one was refused.
    pub(super) fn reshaped(&mut self, id: &Id, result: Result<(), KernelRefusal>) {
        self.outlets.host.look_again();
        self.metrics.tally("eswitch", measuring::answer(&result));
        let Some(begun) = self.orders.begun.get_mut(id) else { return };
        begun.running = false;
        begun.ended = Some(Instant::now());
        let order = begun.order.clone();
        let stage = match (order.stage, result) {
            (OrderStage::Forward, Ok(())) => {
                info!(adapter = %id, now = %order.wanted, "eswitch: done");
                OrderStage::Settled
            }
            (OrderStage::Forward, Err(refusal)) => {
                error!(adapter = %id, %refusal, "eswitch: going back");
                self.metrics.errors.with_label_values(&["eswitch"]).inc();
                OrderStage::Back { why: refusal.to_string() }
            }
            (OrderStage::Back { why }, Ok(())) => {
                warn!(adapter = %id, now = %order.before, "eswitch: as it was before");
                OrderStage::GivenUp { why }
            }
            (OrderStage::Back { .. }, Err(refusal)) => {
                error!(adapter = %id, %refusal, "eswitch: the way back is not free");
                self.metrics.errors.with_label_values(&["eswitch"]).inc();
                begun.stuck = Some(refusal);
                return;
            }
            (OrderStage::Settled | OrderStage::GivenUp { .. }, _) => return,
        };
        self.note(id.clone(), EswitchOrder { stage, ..order });
    }

    /// An eswitch that somebody else changed is brought back while nobody uses its VFs.
    pub(super) fn mend_eswitches(&mut self) {
        let mut again = Vec::new();
        for (id, stored) in &self.intent.eswitches {
            let settling = self.orders.begun.get(id).is_some_and(|begun| {
                begun.running || begun.ended.is_some_and(|ended| ended.elapsed() < SETTLING)
            });
            let order = &stored.spec;
            if settling || order.stage != OrderStage::Settled {
                continue;
            }
            let Some(view) = self.world.adapters.get(id) else { continue };
            let Some(policy) = self.eswitches.get(id) else { continue };
            if forbidden(id, view, policy, order.wanted).is_some() {
                continue;
            }
            if let Some(now) = shape(view).filter(|now| *now != order.wanted)
                && self.uses(id, view).0.is_empty()
            {
                warn!(adapter = %id, %now, wanted = %order.wanted, "eswitch: changed by somebody");
                self.metrics.drift.with_label_values(&[id.as_str(), "eswitch"]).inc();
                let order =
                    EswitchOrder { before: now, stage: OrderStage::Forward, ..order.clone() };
                again.push((id.clone(), order));
            }
        }
        for (id, order) in again {
            self.note(id, order);
        }
    }

    /// Stores how far an order is; nobody waits for the answer.
    fn note(&mut self, id: Id, order: EswitchOrder) {
        let (answer, _) = oneshot::channel();
        let changes = vec![Change::Eswitch(id, Some(order))];
        let only_if = Precondition::None;
        self.store.writes.push_back(Write { changes, only_if, waiter: None, answer });
        self.next_write();
    }

    /// What becomes of what was asked of an adapter's eswitch; nothing where nothing was asked.
    pub(super) fn eswitch_statement(&self, id: &Id, view: &AdapterView) -> Option<Statement> {
        use ConditionStatus::{False, True};
        let say = |status, reason: &str, message: String| {
            Statement::new("Eswitch", status, reason, message)
        };
        let order = &self.intent.eswitches.get(id)?.spec;
        let stuck = self.orders.begun.get(id).and_then(|begun| begun.stuck.as_ref());
        Some(match &order.stage {
            OrderStage::Forward => {
                say(False, "Changing", format!("on its way to {}", order.wanted))
            }
            OrderStage::Back { why } => {
                let stuck = stuck.map(|stuck| format!("; the way back is not free: {stuck}"));
                let stuck = stuck.unwrap_or_default();
                let message = format!("on its way back to {}, because {why}{stuck}", order.before);
                say(False, "GoingBack", message)
            }
            OrderStage::GivenUp { why } => {
                let message =
                    format!("{} was refused, it is as it was before: {why}", order.wanted);
                say(False, "Refused", message)
            }
            OrderStage::Settled => match shape(view) {
                Some(now) if now != order.wanted => {
                    let policy = self.eswitches.get(id);
                    let forbidden = policy.and_then(|p| forbidden(id, view, p, order.wanted));
                    let way = match forbidden {
                        Some((detail, remedy)) => format!("{detail}; {remedy}"),
                        None => "it is changed when nobody uses its VFs, or with \
                                 PUT …/eswitch?force=true"
                            .to_owned(),
                    };
                    let message = format!("it is {now}, {} was asked for; {way}", order.wanted);
                    say(False, "Drifted", message)
                }
                _ => say(True, "AsAsked", format!("it is {}", order.wanted)),
            },
        })
    }
}

/// Why the configuration does not let this adapter have this shape, and what to do.
fn forbidden(
    id: &Id,
    view: &AdapterView,
    policy: &EswitchPolicy,
    wanted: EswitchShape,
) -> Option<(String, String)> {
    if !policy.manage {
        return Some((
            format!("the configuration leaves the eswitch of adapter `{id}` to others"),
            format!(
                "add manage_eswitch = true to the [[adapter]] with handle = \"{}\"",
                view.handle
            ),
        ));
    }
    let max = policy.max_vfs.filter(|max| wanted.num_vfs > *max)?;
    Some((
        format!("the configuration allows adapter `{id}` {max} VFs"),
        format!("ask for at most {max}, or raise max_vfs of its [[adapter]]"),
    ))
}

/// The shape that an adapter is seen in; none while it is not there, or is no NIC.
fn shape(view: &AdapterView) -> Option<EswitchShape> {
    let mode = view.mode.filter(|mode| *mode != EswitchMode::Software)?;
    Some(EswitchShape { mode, num_vfs: u16::try_from(view.vfs.len()).unwrap_or(u16::MAX) })
}

/// How an adapter would look in another shape.
fn imagined(view: &AdapterView, wanted: EswitchShape) -> AdapterView {
    let representor = |index: u16| {
        let name = format!("vf{index}");
        let ifindex = Ifindex::new(THOUGHT_OF + u32::from(index))?;
        Some(NetdevView { ifindex, name, mac: None })
    };
    let switchdev = wanted.mode == EswitchMode::Switchdev;
    let vf = |index| {
        let representor = representor(index).filter(|_| switchdev);
        (index, VfView { representor, ..VfView::default() })
    };
    let port = view.uplink.as_ref().or(view.pf.as_ref()).cloned();
    AdapterView {
        mode: Some(wanted.mode),
        uplink: port.clone().filter(|_| switchdev),
        pf: port.filter(|_| !switchdev),
        vfs: (0..wanted.num_vfs).map(vf).collect(),
        ..view.clone()
    }
}

fn conflict(detail: impl Into<String>, remedy: impl Into<String>) -> ApiError {
    ApiError::Conflict { detail: detail.into(), blockers: Vec::new(), remedy: remedy.into() }
}
