//! How many of each port's flows are in which state, kept up to date flow by flow.
//!
//! In: a flow's state before and after something changed. Out: counts. To count anew at each
//! question would take as long as the adapter has flows.

use std::collections::BTreeMap;

use api::{
    resources::{FlowCounts, FlowState},
    types::Id,
};

use crate::plan::switchdev::Why;

/// The counts of one adapter's flows.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    all: FlowCounts,
    ports: foldhash::HashMap<Id, Account>,
    /// Ports whose counts changed since they were asked for.
    touched: Vec<Id>,
}

/// What has become of a flow, with the kernel's words where it refused it or its offload.
pub(super) type State<'w> = (FlowState, Option<&'w str>);

/// The flows of one port.
#[derive(Debug, Default)]
pub(super) struct Account {
    /// How many are in which state.
    pub(super) counts: FlowCounts,
    /// The driver's words about flows that it did not take, with how many flows they are about.
    not_in_hw: BTreeMap<String, u64>,
    /// Whether it is among those that were touched.
    touched: bool,
}

impl Account {
    fn is_empty(&self) -> bool {
        self.counts == FlowCounts::default() && self.not_in_hw.is_empty()
    }

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
    pub(super) fn book(&mut self, why: &Why, (state, words): State<'_>, entry: Entry) {
        step(count(&mut self.all, state), entry);
        let Some(port) = &why.port else { return };
        let account = match self.ports.get_mut(port) {
            Some(account) => account,
            None => self.ports.entry(port.clone()).or_default(),
        };
        step(count(&mut account.counts, state), entry);
        if let (FlowState::NotInHw, Some(words)) = (state, words) {
            match account.not_in_hw.get_mut(words) {
                Some(count) => step(count, entry),
                None => step(account.not_in_hw.entry(words.to_owned()).or_default(), entry),
            }
            account.not_in_hw.retain(|_, count| *count > 0);
        }
        if !std::mem::replace(&mut account.touched, true) {
            self.touched.push(port.clone());
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
        let accounts = |ledger: &Ledger| -> BTreeMap<Id, (FlowCounts, BTreeMap<String, u64>)> {
            let full = ledger.ports.iter().filter(|(_, account)| !account.is_empty());
            full.map(|(id, held)| (id.clone(), (held.counts, held.not_in_hw.clone()))).collect()
        };
        self.all == other.all && accounts(self) == accounts(other)
    }

    /// The counts of all flows.
    pub(super) const fn all(&self) -> &FlowCounts {
        &self.all
    }

    /// The flows of a port; none where it has none.
    pub(super) fn of_port(&self, port: &Id) -> Option<&Account> {
        self.ports.get(port).filter(|account| !account.is_empty())
    }

    /// The ports whose counts changed since this was asked last.
    pub(super) fn take_touched(&mut self) -> Vec<Id> {
        let touched = std::mem::take(&mut self.touched);
        for port in &touched {
            match self.ports.get_mut(port) {
                Some(account) if account.is_empty() => drop(self.ports.remove(port)),
                Some(account) => account.touched = false,
                None => {}
            }
        }
        touched
    }
}

const fn count(counts: &mut FlowCounts, state: FlowState) -> &mut u64 {
    match state {
        FlowState::InHw => &mut counts.in_hw,
        FlowState::NotInHw => &mut counts.not_in_hw,
        FlowState::Refused => &mut counts.refused,
        FlowState::Pending => &mut counts.pending,
    }
}

const fn step(count: &mut u64, entry: Entry) {
    *count = match entry {
        Entry::In => *count + 1,
        Entry::Out => count.saturating_sub(1),
    };
}
