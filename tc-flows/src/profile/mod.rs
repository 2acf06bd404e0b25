//! What drivers do with rules: which they refuse, in their words, and how they execute the others.
//!
//! In comes a rule, out goes yes or the driver's extended ack; in come the rules that hardware
//! holds and a frame, out goes what hardware does with it. Every entry names the source that it
//! follows, in Linux 7.3. What silicon or firmware decides and the driver's source does not show
//! is never guessed: the walk ends there and says so. A NIC can be less able than its profile
//! (older firmware); what it is asked here it never answers better.

mod ice;
mod mlx5;

use std::collections::BTreeSet;

pub use ice::Ice;
pub use mlx5::Mlx5;

use crate::action::Action;
use crate::frame::Frame;
use crate::ident::{Hook, Ifindex, VlanTpid};
use crate::key::{KeyId, Match};
use crate::rule::Rule;
use crate::walk::{Chains, Handover, Walk, Why};

/// The interfaces of one embedded switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eswitch {
    /// The representor of its physical port.
    pub uplink: Ifindex,
    /// The representors of its functions.
    pub representors: BTreeSet<Ifindex>,
}

/// Whose hardware it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Profile {
    /// No hardware: every rule is refused without a word, as at an interface whose driver has no
    /// `TC_SETUP_BLOCK` (`tc_setup_cb_call` in net/sched/cls_api.c finds nobody to ask).
    #[default]
    Software,
    /// An ideal switch, which takes every rule and does what software would do. Where nothing
    /// matches, or a rule says `trap`, software goes on in that chain. (netdevsim takes every rule
    /// too, `nsim_setup_tc_block_cb` in drivers/net/netdevsim/netdev.c, but executes none.)
    AcceptAll,
    /// NVIDIA ConnectX, drivers/net/ethernet/mellanox/mlx5.
    Mlx5(Mlx5),
    /// Intel E800, drivers/net/ethernet/intel/ice.
    Ice(Ice),
}

impl Profile {
    /// Whether the driver takes the rule into hardware.
    ///
    /// # Errors
    /// Where it does not: its extended ack, empty where it has no words.
    pub fn accepts(&self, rule: &Rule) -> Result<(), String> {
        rule.actions().iter().try_for_each(offered)?;
        match self {
            Profile::Software => Err(String::new()),
            Profile::AcceptAll => Ok(()),
            Profile::Mlx5(mlx5) => mlx5.accepts(rule),
            Profile::Ice(ice) => ice.accepts(rule),
        }
    }

    /// What hardware that holds these rules does with the frame, and what it hands over.
    pub(crate) fn execute(&self, held: &Chains<'_>, frame: &Frame) -> (Walk, Option<Handover>) {
        match self {
            Profile::Software | Profile::AcceptAll => ideal(held, frame),
            Profile::Mlx5(mlx5) => mlx5.execute(held, frame),
            Profile::Ice(_) => ice::execute(held, frame),
        }
    }
}

fn ideal(held: &Chains<'_>, frame: &Frame) -> (Walk, Option<Handover>) {
    let mut passage = held.walk(crate::ident::ChainId::ZERO, frame.clone());
    let chain = passage.chain;
    let handover = if let Some(frame) = passage.trapped {
        passage.walk.dropped = false;
        Some(Handover { why: Why::Trap, chain, frame })
    } else if passage.missed {
        let frame = passage.walk.to_host.take();
        frame.map(|frame| Handover { why: Why::Miss(chain), chain, frame })
    } else {
        None
    };
    (passage.walk, handover)
}

/// Which side of the switch a hook is on, for what it receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Uplink,
    Representor,
}

impl Eswitch {
    /// The switch of this uplink and these representors.
    pub fn new(uplink: Ifindex, representors: impl IntoIterator<Item = Ifindex>) -> Eswitch {
        Eswitch { uplink, representors: representors.into_iter().collect() }
    }

    fn side(&self, ifindex: Ifindex) -> Option<Side> {
        if ifindex == self.uplink {
            Some(Side::Uplink)
        } else {
            self.representors.contains(&ifindex).then_some(Side::Representor)
        }
    }

    /// The side of an ingress hook. Neither driver takes blocks of another binder type
    /// (`flow_block_cb_setup_simple` with `ingress_only`, net/core/flow_offload.c; called from
    /// `mlx5e_rep_setup_tc` in en/rep/tc.c and `ice_repr_setup_tc` in ice_repr.c): without a word.
    fn ingress_side(&self, hook: Hook) -> Option<Side> {
        match hook {
            Hook::Ingress(ifindex) => self.side(ifindex),
            Hook::Egress(_) | Hook::Block(_) => None,
        }
    }
}

/// Whether tc offers the action to drivers at all: `tcf_*_offload_act_setup` in net/sched/act_*.c,
/// `tc_setup_offload_act` in net/sched/cls_api.c. Asked at every interface.
fn offered(action: &Action) -> Result<(), String> {
    match action {
        Action::Continue => refused("act_gact: Offload of \"continue\" action is not supported"),
        Action::Pipe => refused("act_gact: Offload of \"pipe\" action is not supported"),
        Action::Jump(_) => refused("act_gact: Unsupported generic action offload"),
        Action::Nat(_) => refused("Action does not support offload"),
        _ => Ok(()),
    }
}

/// Whether a match names a second tag, so that flower knows its kind (`is_vlan_key` in
/// net/sched/cls_flower.c).
fn has_second_tag(matching: &Match) -> bool {
    let fields = matching.fields();
    let second = [KeyId::CvlanId, KeyId::CvlanPrio, KeyId::CvlanEthType];
    second.iter().any(|id| fields.get(*id).is_some())
        || fields.get(KeyId::VlanEthType).is_some_and(|field| {
            let ethertype = field.value.iter().fold(0, |sum, byte| sum << 8 | u16::from(*byte));
            VlanTpid::from_ethertype(ethertype).is_some()
        })
}

fn refused<T>(words: &str) -> Result<T, String> {
    Err(words.to_owned())
}
