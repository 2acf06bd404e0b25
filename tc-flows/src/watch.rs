//! What changed in a kernel's rules, as it tells everybody who listens.
//!
//! Plain values: in they come from `wire`, out they go to whoever holds a
//! [`Watch`](crate::Watch). Nothing here asks a kernel.

use crate::ident::{BlockId, Handle, Hook, Ifindex};
use crate::kernel::{Foreign, OwnRule, RuleLocation};

/// One thing that a [`Watch`](crate::Watch) has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Something changed.
    Changed {
        /// What.
        change: Change,
        /// Who did it.
        by: Sender,
    },
    /// Changes were lost: all that was known of any hook is void, dump again.
    Lost,
}

/// Whose request led to a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sender {
    /// One of the sockets that the watch was told to be ours.
    Ours,
    /// Another socket of this network namespace, by its port.
    Other(u32),
    /// Nobody's: the kernel did it by itself, or as the consequence of something.
    Kernel,
}

/// A change of what stands at hooks.
///
/// An interface that goes takes its hooks and their filters along without a word here: listen for
/// that to links (`RTM_DELLINK`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A filter that was not there is there.
    FilterAdded {
        /// Where.
        hook: Hook,
        /// The filter.
        filter: SeenFilter,
    },
    /// A filter is there as it is now; whether in the place of another of its handle is not said.
    FilterSet {
        /// Where.
        hook: Hook,
        /// The filter.
        filter: SeenFilter,
    },
    /// A filter is gone.
    FilterDeleted {
        /// Where.
        hook: Hook,
        /// The filter as it was.
        filter: SeenFilter,
    },
    /// All filters of a prio are gone. Where a whole chain is flushed, one comes for each prio.
    PrioDeleted {
        /// Where.
        hook: Hook,
        /// The chain.
        chain: u32,
        /// The priority.
        prio: u16,
        /// The ethertype in the kernel's `tcm_info`, host order.
        protocol: u16,
    },
    /// A chain came to be: with its first filter, or with a template.
    ChainAdded {
        /// Whose. The kernel does not say which direction.
        place: Place,
        /// The chain.
        chain: u32,
    },
    /// A chain is gone, and all filters in it.
    ChainDeleted {
        /// Whose. The kernel does not say which direction.
        place: Place,
        /// The chain.
        chain: u32,
    },
    /// An interface has an ingress or clsact qdisc.
    QdiscAdded {
        /// The interface.
        ifindex: Ifindex,
        /// `clsact` or `ingress`.
        kind: String,
    },
    /// An interface has no ingress or clsact qdisc any more, and so no hooks: all filters there
    /// are gone.
    QdiscDeleted {
        /// The interface.
        ifindex: Ifindex,
        /// `clsact` or `ingress`.
        kind: String,
    },
    /// Actions that have numbers of their own were added or changed, and with them every rule that
    /// shares them.
    ActionsSet(Vec<SeenAction>),
    /// Actions that had numbers of their own are gone.
    ActionsDeleted(Vec<SeenAction>),
}

/// A filter as a notification shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeenFilter {
    /// The owner's, and what its cookie says.
    Own(Box<OwnRule>),
    /// The owner's, but not what its cookie says, or not readable by this build.
    UnreadableOwn(RuleLocation, Handle),
    /// Somebody else's.
    Foreign(Foreign),
}

impl SeenFilter {
    /// Chain, prio and handle.
    pub fn place(&self) -> (u32, u16, Handle) {
        let at = |location: &RuleLocation, handle: Handle| {
            (location.chain.get(), location.prio.get(), handle)
        };
        match self {
            SeenFilter::Own(own) => at(&RuleLocation::of(own.rule.id()), own.handle),
            SeenFilter::UnreadableOwn(location, handle) => at(location, *handle),
            SeenFilter::Foreign(foreign) => (foreign.chain, foreign.prio, foreign.handle),
        }
    }
}

/// Where chains are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// At an interface, in either direction.
    Interface(Ifindex),
    /// In a block that interfaces share.
    Block(BlockId),
}

impl Place {
    /// Whether this may be the place of a hook.
    pub fn may_be(self, hook: Hook) -> bool {
        match (self, hook) {
            (Place::Interface(ifindex), hook) => hook.ifindex() == Some(ifindex),
            (Place::Block(block), Hook::Block(other)) => block == other,
            (Place::Block(_), _) => false,
        }
    }
}

/// An action as a notification shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenAction {
    /// `gact`, `police`, …
    pub kind: String,
    /// Its number among those of its kind; none where all of the kind are meant.
    pub index: Option<u32>,
}

impl Change {
    /// Whether it may concern what stands at this hook. Actions may concern any.
    pub fn may_concern(&self, hook: Hook) -> bool {
        match self {
            Change::FilterAdded { hook: at, .. }
            | Change::FilterSet { hook: at, .. }
            | Change::FilterDeleted { hook: at, .. }
            | Change::PrioDeleted { hook: at, .. } => *at == hook,
            Change::ChainAdded { place, .. } | Change::ChainDeleted { place, .. } => {
                place.may_be(hook)
            }
            Change::QdiscAdded { ifindex, .. } | Change::QdiscDeleted { ifindex, .. } => {
                hook.ifindex() == Some(*ifindex)
            }
            Change::ActionsSet(_) | Change::ActionsDeleted(_) => true,
        }
    }
}
