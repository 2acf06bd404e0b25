//! How many of each port's flows are in which state, kept up to date flow by flow.
//!
//! In: a flow's state before and after something changed. Out: counts. To count anew at each
//! question would take as long as the adapter has flows.

use std::collections::{BTreeMap, BTreeSet};

use api::{
    resources::{FlowCounts, FlowState},
    types::Id,
};

use crate::plan::switchdev::Why;

/// The counts of one adapter's flows.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    all: FlowCounts,
    ports: BTreeMap<Id, Account>,
    /// Ports whose counts changed since they were asked for.
    touched: BTreeSet<Id>,
}

/// The flows of one port.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// How many are in which state.
    pub(super) counts: FlowCounts,
    /// The driver's words about flows that it did not take, with how many flows they are about.
    not_in_hw: BTreeMap<String, u64>,
}

impl Account {
    /// Why a flow is not in hardware, where the driver said it of one.
    pub(super) fn why_not_in_hw(&self) -> Option<&str> {
        self.not_in_hw.keys().next().map(String::as_str)
    }
}

/// Whether a flow comes into the books or leaves them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    In,
    Out,
}

impl Ledger {
    /// Books a flow of this state.
    pub(super) fn book(
        &mut self,
        why: &Why,
        (state, words): (FlowState, Option<String>),
        entry: Entry,
    ) {
        book(&mut self.all, state, entry);
        let Some(port) = &why.port else { return };
        let account = self.ports.entry(port.clone()).or_default();
        book(&mut account.counts, state, entry);
        if let (FlowState::NotInHw, Some(words)) = (state, words) {
            let count = account.not_in_hw.entry(words.clone()).or_default();
            step(count, entry);
            if *count == 0 {
                account.not_in_hw.remove(&words);
            }
        }
        if *account == Account::default() {
            self.ports.remove(port);
        }
        if !self.touched.contains(port) {
            self.touched.insert(port.clone());
        }
    }

    /// There are no flows any more.
    pub(super) fn close(&mut self) {
        self.all = FlowCounts::default();
        self.touched.extend(std::mem::take(&mut self.ports).into_keys());
    }

    /// Whether both say the same, whenever it changed.
    #[cfg(test)]
    pub(super) fn agrees(&self, other: &Ledger) -> bool {
        self.all == other.all && self.ports == other.ports
    }

    /// The counts of all flows.
    pub(super) const fn all(&self) -> &FlowCounts {
        &self.all
    }

    /// The flows of a port; none where it has none.
    pub(super) fn of_port(&self, port: &Id) -> Option<&Account> {
        self.ports.get(port)
    }

    /// The ports whose counts changed since this was asked last.
    pub(super) fn take_touched(&mut self) -> BTreeSet<Id> {
        std::mem::take(&mut self.touched)
    }
}

fn book(counts: &mut FlowCounts, state: FlowState, entry: Entry) {
    let count = match state {
        FlowState::InHw => &mut counts.in_hw,
        FlowState::NotInHw => &mut counts.not_in_hw,
        FlowState::Refused => &mut counts.refused,
        FlowState::Pending => &mut counts.pending,
    };
    step(count, entry);
}

fn step(count: &mut u64, entry: Entry) {
    *count = match entry {
        Entry::In => *count + 1,
        Entry::Out => count.saturating_sub(1),
    };
}
