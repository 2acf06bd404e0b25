//! What the rest of the crate's users need of a kernel, and in which words it answers.
//!
//! In go single changes, out comes exactly one outcome for each, and dumps. Two rooms implement
//! it: [`crate::NetlinkKernel`] for the real one, [`crate::FakeKernel`] in memory.

use std::io;

use crate::diff::Op;
use crate::ident::{ChainId, Handle, Hook, Prio};
use crate::rule::{Cookie, Owner, Rule, RuleId, Slot};
use crate::stats::Stats;

/// Why the conversation with the kernel failed as a whole. What it says about a single rule is an
/// [`Outcome`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be made, or broke.
    #[error("netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused a request that is not about one rule.
    #[error("{request}: {}{}", io::Error::from_raw_os_error(*errno), .message.as_deref().map(|m| format!(" ({m})")).unwrap_or_default())]
    Refused {
        /// What was asked for.
        request: &'static str,
        /// The kernel's error number, positive.
        errno: i32,
        /// The kernel's extended ack.
        message: Option<String>,
    },
    /// What was asked for changed, or a part of the answer was lost, each time.
    #[error("{request}: the answer was never whole")]
    Interrupted {
        /// What was asked for.
        request: &'static str,
    },
    /// The kernel did not answer in time.
    #[error("{request}: no answer from the kernel")]
    NoAnswer {
        /// What was asked for.
        request: &'static str,
    },
}

/// A result whose error is this crate's.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How much the kernel is asked to tell about each change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Only failures: the fastest way. Whether a rule got into hardware is seen by a dump.
    Fast,
    /// Whether each rule got into hardware, and the driver's words where it did not.
    Told,
}

/// What became of one change. One for each, always.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Installed; whether in hardware was not asked ([`Mode::Fast`]).
    Installed,
    /// Installed, in hardware too.
    InHw,
    /// Installed in software only.
    NotInHw {
        /// The driver's words, where it had any.
        reason: Option<String>,
    },
    /// Gone, or was not there in the first place.
    Deleted,
    /// Not carried out.
    Refused {
        /// The kernel's error number, positive.
        errno: i32,
        /// The kernel's extended ack.
        message: Option<String>,
        /// What of the request it objects to, where it says: attribute names from the outermost
        /// in, such as `TCA_OPTIONS/TCA_FLOWER_KEY_VLAN_ID`. One that is missing ends in
        /// ` (missing)`.
        attribute: Option<String>,
    },
    /// Not known: look again by a dump.
    Unknown,
}

impl Outcome {
    /// Whether the change took effect.
    pub const fn is_done(&self) -> bool {
        matches!(
            self,
            Outcome::Installed | Outcome::InHw | Outcome::NotInHw { .. } | Outcome::Deleted
        )
    }
}

/// Whether an installed rule is executed by hardware.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HwState {
    /// Yes.
    InHw,
    /// No, with the driver's words where they are known.
    NotInHw(Option<String>),
    /// Installed by a change that did not ask.
    NotAsked,
}

/// Where a rule stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleLocation {
    /// The hook.
    pub hook: Hook,
    /// The chain.
    pub chain: ChainId,
    /// The priority.
    pub prio: Prio,
    /// The ethertype in the kernel's `tcm_info`, host order.
    pub protocol: u16,
}

impl RuleLocation {
    /// That of a rule.
    pub const fn of(id: &RuleId) -> RuleLocation {
        RuleLocation {
            hook: id.hook(),
            chain: id.chain(),
            prio: id.prio(),
            protocol: id.matching().protocol(),
        }
    }

    pub(crate) const fn slot(&self) -> Slot {
        Slot { hook: self.hook, chain: self.chain, prio: self.prio }
    }
}

/// A filter that another owner installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The chain, as the kernel numbers it.
    pub chain: u32,
    /// The priority.
    pub prio: u16,
    /// The ethertype in the kernel's `tcm_info`, host order.
    pub protocol: u16,
    /// The filter's handle.
    pub handle: Handle,
    /// The kind of classifier: `flower`, `bpf`, …
    pub kind: String,
    /// Whose it is, where its first action has a cookie of our format.
    pub owner: Option<Owner>,
}

/// A rule of the owner as a full dump shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnRule {
    /// The rule.
    pub rule: Rule,
    /// Its handle.
    pub handle: Handle,
    /// Whether hardware executes it.
    pub hw: HwState,
    /// How many drivers took it: more than one where ports share a block (`in_hw_count`).
    pub in_hw_count: u32,
    /// How often it was hit.
    pub stats: Stats,
}

/// A rule of the owner as a terse dump shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TerseRule {
    /// Where it stands.
    pub location: RuleLocation,
    /// Its handle.
    pub handle: Handle,
    /// Its cookie, by which it is known again.
    pub cookie: Cookie,
    /// Whether hardware executes it.
    pub hw: HwState,
    /// How often it was hit.
    pub stats: Stats,
}

impl TerseRule {
    /// Whether this is `rule` of `owner`, as far as its place and cookie tell. Where no wanted
    /// rule has this place and cookie, a full dump of the hook says what stands there. A
    /// destination that vanished leaves the cookie as it was: after an interface was lost, look by
    /// full dumps.
    pub fn is(&self, rule: &Rule, owner: Owner) -> bool {
        self.location == RuleLocation::of(rule.id()) && self.cookie == rule.cookie(owner)
    }
}

/// What stands at one hook, without keys and actions: a tenth of a full dump's bytes, enough to
/// adopt rules by their cookies and to read counters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TerseDump {
    /// Rules with the owner's cookie.
    pub own: Vec<TerseRule>,
    /// Everybody else's filters: to be left alone.
    pub foreign: Vec<Foreign>,
    /// Whether the interface has a clsact or ingress qdisc.
    pub hook_present: bool,
}

/// What stands at one hook.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// Rules with the owner's cookie that are what their cookie says.
    pub own: Vec<OwnRule>,
    /// Rules with the owner's cookie that this build cannot read, or that are not what their
    /// cookie says (a destination that vanished): to be deleted.
    pub unreadable_own: Vec<(RuleLocation, Handle)>,
    /// Everybody else's filters: to be left alone.
    pub foreign: Vec<Foreign>,
    /// Whether the interface has a clsact or ingress qdisc.
    pub hook_present: bool,
}

/// A kernel that holds flower rules for one owner.
pub trait Kernel {
    /// Makes the hook's qdisc (clsact). One that exists is left as it is.
    ///
    /// # Errors
    /// Where the kernel refuses (no such interface) or does not answer.
    fn ensure_hook(&mut self, hook: Hook) -> Result<()>;

    /// Carries out changes in this order, each on its own: one that is refused does not stop those
    /// behind it. A deletion of a rule or at an interface that is not there counts as
    /// [`Outcome::Deleted`].
    fn apply(&mut self, ops: &[Op], mode: Mode) -> Vec<Outcome>;

    /// Everything at this hook. A hook without a qdisc, or whose interface is gone, is empty.
    ///
    /// # Errors
    /// Where the kernel refuses or does not answer.
    fn dump(&mut self, hook: Hook) -> Result<Dump>;

    /// Everything at this hook, where others may change it meanwhile: no rule is left out that
    /// stood there all the time, and none is there twice. What a plain dump leaves out when a
    /// whole prio goes meanwhile comes back with the next; for adoption there must be no such gap.
    ///
    /// # Errors
    /// As for a dump; [`Error::Interrupted`] where others change too much for one in many tries.
    fn dump_consistent(&mut self, hook: Hook) -> Result<Dump> {
        self.dump(hook)
    }

    /// Everything at this hook by place, cookie and counters.
    ///
    /// # Errors
    /// Where the kernel refuses or does not answer.
    fn dump_terse(&mut self, hook: Hook) -> Result<TerseDump>;

    /// Makes each of these hooks that is missing, and reads it likewise, where others may change it
    /// meanwhile: `None` where somebody may have, and only [`Kernel::dump_consistent`] tells. In
    /// this order. To listen costs more than to read a short hook: that is done once for all.
    ///
    /// # Errors
    /// Of each hook, as for making it and for a dump.
    fn adopt_terse(&mut self, hooks: &[Hook]) -> Vec<Result<Option<TerseDump>>> {
        let adopt = |hook: &Hook| {
            self.ensure_hook(*hook)?;
            self.dump_terse(*hook).map(Some)
        };
        hooks.iter().map(adopt).collect()
    }
}
