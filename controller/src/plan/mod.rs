//! The planner: `(World, Intent, Claims) → Plan`, and nothing else.
//!
//! Pure: no I/O, no clock, no randomness, stable order. The same inputs give the same plan byte
//! for byte. It runs as a list of stages, each a file:
//!
//! 1. [`bind`]: on which VF or representor each port stands;
//! 2. [`admit`]: which addresses each port may send from (the policy);
//! 3. [`switchdev`]: the flows of an adapter with representors;
//!    [`legacy`]: the VF settings of an adapter without;
//!    [`rate`]: what its VFs may send, where devlink rate objects keep it;
//!    [`vdpa`]: the vDPA devices of an adapter whose devices are ours to manage.
//!
//! [`Planner`] runs them for what changed, [`plan`] for everything.

pub mod admit;
pub mod bind;
pub mod legacy;
mod planner;
pub mod rate;
mod roster;
pub mod switchdev;
pub mod vdpa;

use std::{collections::BTreeMap, sync::Arc};

use api::{
    resources::RefusedMac,
    types::{Id, MacAddr},
};

pub use self::planner::{Changes, Dirty, Planner};

use crate::{
    config::UplinkUse,
    intent::{Claims, Intent},
    world::World,
};

/// What the configuration says of each adapter, as far as planning needs it.
pub type AdapterPolicies = BTreeMap<Id, UplinkUse>;

/// Everything that should be, and why what is wanted cannot be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// What each adapter should hold, for adapters that are there.
    pub programs: BTreeMap<Id, Program>,
    /// The vDPA devices that each adapter should have, where they are ours to manage.
    pub vdpa: BTreeMap<Id, vdpa::VdpaProgram>,
    /// The rates of VFs, of adapters with rate objects for them.
    pub rates: BTreeMap<Id, rate::RateProgram>,
    /// What became of each port.
    pub ports: BTreeMap<Id, PortPlan>,
    /// What stands in the way of a network.
    pub networks: BTreeMap<Id, Vec<Finding>>,
}

/// What an adapter should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// Flows on representors and uplink.
    Flows(switchdev::FlowProgram),
    /// Settings of VFs.
    VfSettings(legacy::LegacyProgram),
}

/// What became of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPlan {
    /// Where it stands, or why nowhere.
    pub place: Result<bind::Place, Finding>,
    /// The addresses that it may send from.
    pub macs: Vec<MacAddr>,
    /// What its guest asked for and does not get.
    pub refused: Vec<RefusedMac>,
    /// Whether it receives frames that nobody here is known to want.
    pub promiscuous: bool,
    /// Its guest asks for every frame and may not have them.
    pub promiscuous_refused: bool,
    /// The groups that its guest asks for, in order, where that decides what it gets.
    pub groups: Option<Arc<[MacAddr]>>,
    /// Another port holds what this one needs.
    pub conflict: Option<Finding>,
    /// Wishes that this adapter or mode cannot fulfil.
    pub unmet: Vec<Finding>,
    /// The adapter that is to have a vDPA device for it, and its place there, or why it has none.
    pub vdpa: Option<(Id, Result<String, Finding>)>,
}

/// A reason for programs and a sentence for people, as conditions carry them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// One word.
    pub reason: &'static str,
    /// What is so, and what to do about it.
    pub message: String,
}

impl Finding {
    pub(crate) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Finding { reason, message: message.into() }
    }
}

/// Plans everything, from nothing.
pub fn plan(world: &World, intent: &Intent, claims: &Claims, policies: &AdapterPolicies) -> Plan {
    let mut planner = Planner::holding(claims.clone());
    planner.update(world, intent, policies, &Dirty::all());
    planner.into_plan()
}
