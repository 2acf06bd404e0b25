//! How often rules were hit: in software, in hardware, and when last.
//!
//! In come numbers that a kernel counted, out go plain values. Who reads them from bytes is
//! `wire`; nothing here asks a kernel.

use std::time::Duration;

/// Frames counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counters {
    /// Bytes. Software leaves out the Ethernet header of what an interface received and of a tag
    /// that the driver took off (`sch_handle_ingress`, net/core/dev.c); hardware counts as its
    /// driver does.
    pub bytes: u64,
    /// Frames. Software counts each of those from which the kernel merged a larger one
    /// (`bstats_update`, include/net/sch_generic.h).
    pub packets: u64,
}

impl Counters {
    /// What is left of these when `part` of them is taken away; never below zero, since the kernel
    /// does not read the two at one moment.
    pub(crate) const fn without(self, part: Counters) -> Counters {
        Counters {
            bytes: self.bytes.saturating_sub(part.bytes),
            packets: self.packets.saturating_sub(part.packets),
        }
    }
}

/// What a rule's first action has counted, and so what the rule has: every frame that matches
/// meets that action. A replacement of the rule starts from zero. An action that several rules
/// share counts for all of them.
///
/// The kernel keeps a total and the hardware's part of it: what a driver reports is added to both
/// (`tcf_action_update_stats`, net/sched/act_api.c) and both are dumped
/// (`tcf_action_copy_stats`, `TCA_STATS_BASIC` and `TCA_STATS_BASIC_HW`). Software is the rest. A
/// dump makes drivers report, so it is as young as they make it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stats {
    /// Frames that met the rule in software.
    pub software: Counters,
    /// Frames that hardware counted for the rule.
    pub hardware: Counters,
    /// Frames that the action dropped (`TCA_STATS_QUEUE`), software and hardware together.
    pub drops: u32,
    /// Frames beyond a limit of the action (`TCA_STATS_QUEUE`): a policer's.
    pub overlimits: u32,
    /// Times, where the dump was a full one.
    pub times: Option<Times>,
}

/// How long ago something happened to a rule (`struct tcf_t`, in steps of 10 ms).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Times {
    /// Since it was installed or last replaced.
    pub installed: Duration,
    /// Since the last hit; since the installation where there was none.
    pub last_used: Duration,
    /// Since the first hit, where there was one.
    pub first_used: Option<Duration>,
}
