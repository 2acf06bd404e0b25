//! What netdevs have counted, booked to the ports that stand on them.
//!
//! In: what all netdevs have counted, and who stands on them. Out: what each port's netdev has
//! received and sent while the port stood on it, over all netdevs that it has had. No I/O, no clock.

use std::collections::BTreeMap;

use api::types::Id;
use tc_flows::{Counters, Ifindex};

use crate::observe::host::Traffic;

/// Readings of netdevs, one after the other.
#[derive(Debug, Default)]
pub(super) struct Books {
    /// Whether there was a reading of all netdevs.
    begun: bool,
    /// What netdevs had counted when they were read last.
    last: BTreeMap<Ifindex, Traffic>,
    /// Who stood on them then.
    holders: BTreeMap<Ifindex, Id>,
    /// What each port has moved.
    ports: BTreeMap<Id, Traffic>,
}

impl Books {
    /// Books what came since the reading before. It is of who stood on the netdev then; where nobody
    /// did, of who stands there now. What a netdev had counted before the first reading is nobody's;
    /// of one that is new everything counts.
    pub(super) fn book(&mut self, now: BTreeMap<Ifindex, Traffic>, holders: BTreeMap<Ifindex, Id>) {
        self.add_up(&now, &holders);
        (self.begun, self.last, self.holders) = (true, now, holders);
    }

    /// The same of some netdevs. Before all have been read once that is none.
    pub(super) fn book_some(
        &mut self,
        now: BTreeMap<Ifindex, Traffic>,
        holders: &BTreeMap<Ifindex, Id>,
    ) {
        if !self.begun {
            return;
        }
        self.add_up(&now, holders);
        for ifindex in now.keys() {
            match holders.get(ifindex) {
                Some(holder) => self.holders.insert(*ifindex, holder.clone()),
                None => self.holders.remove(ifindex),
            };
        }
        self.last.extend(now);
    }

    fn add_up(&mut self, now: &BTreeMap<Ifindex, Traffic>, holders: &BTreeMap<Ifindex, Id>) {
        for (ifindex, counted) in now {
            let Some(holder) = self.holders.get(ifindex).or_else(|| holders.get(ifindex)) else {
                continue;
            };
            let first = (!self.begun).then_some(counted);
            let more = since(*counted, self.last.get(ifindex).or(first));
            let sum = self.ports.entry(holder.clone()).or_default();
            add(&mut sum.received, more.received);
            add(&mut sum.sent, more.sent);
        }
        for (ifindex, holder) in holders {
            if now.contains_key(ifindex) {
                self.ports.entry(holder.clone()).or_default();
            }
        }
    }

    /// Whether there was a reading of all netdevs.
    pub(super) const fn has_begun(&self) -> bool {
        self.begun
    }

    /// Forgets all other ports.
    pub(super) fn retain(&mut self, is_there: impl Fn(&Id) -> bool) {
        self.ports.retain(|port, _| is_there(port));
    }

    /// What each port has moved.
    pub(super) fn ports(&self) -> &BTreeMap<Id, Traffic> {
        &self.ports
    }

    /// The netdev that a port stood on when netdevs were read last, and what that had counted.
    pub(super) fn stands(&self, port: &Id) -> Option<(Ifindex, Traffic)> {
        let (ifindex, _) = self.holders.iter().find(|(_, holder)| *holder == port)?;
        Some((*ifindex, *self.last.get(ifindex)?))
    }

    /// A port had moved so much when an earlier daemon read netdevs last, and stood on a netdev that
    /// had counted so much.
    pub(super) fn carry(&mut self, port: &Id, moved: Traffic, stood: Option<(Ifindex, Traffic)>) {
        self.ports.insert(port.clone(), moved);
        if let Some((ifindex, counted)) = stood {
            self.last.insert(ifindex, counted);
            self.holders.insert(ifindex, port.clone());
        }
    }
}

/// What came since; all of it where the netdev was not there before.
pub(super) fn since(now: Traffic, before: Option<&Traffic>) -> Traffic {
    let before = before.copied().unwrap_or_default();
    Traffic { received: less(now.received, before.received), sent: less(now.sent, before.sent) }
}

/// How much more; nothing where it is less.
pub(super) const fn less(now: Counters, before: Counters) -> Counters {
    Counters {
        packets: now.packets.saturating_sub(before.packets),
        bytes: now.bytes.saturating_sub(before.bytes),
    }
}

pub(super) const fn add(sum: &mut Counters, more: Counters) {
    sum.packets += more.packets;
    sum.bytes += more.bytes;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> Id {
        text.parse().unwrap()
    }

    fn netdevs(counted: &[(u32, u64)]) -> BTreeMap<Ifindex, Traffic> {
        let traffic = |packets| {
            let received = Counters { packets, bytes: 100 * packets };
            Traffic { received, sent: Counters::default() }
        };
        counted.iter().map(|(n, count)| (Ifindex::new(*n).unwrap(), traffic(*count))).collect()
    }

    fn holders(stand: &[(u32, &str)]) -> BTreeMap<Ifindex, Id> {
        stand.iter().map(|(n, port)| (Ifindex::new(*n).unwrap(), id(port))).collect()
    }

    /// Packets that the ports have moved.
    fn moved(books: &Books) -> Vec<(&str, u64)> {
        books.ports().iter().map(|(port, sum)| (port.as_str(), sum.received.packets)).collect()
    }

    #[test]
    fn what_was_counted_before_anybody_looked_is_nobodys() {
        let mut books = Books::default();
        books.book(netdevs(&[(5, 1000)]), holders(&[(5, "a")]));
        assert_eq!(moved(&books), [("a", 0)]);
        books.book(netdevs(&[(5, 1007), (6, 3)]), holders(&[(5, "a"), (6, "b")]));
        assert_eq!(moved(&books), [("a", 7), ("b", 3)], "a new netdev has counted for its port");
    }

    #[test]
    fn a_netdev_that_another_port_gets_counts_for_it_from_then_on() {
        let mut books = Books::default();
        books.book(netdevs(&[(5, 0), (6, 50)]), holders(&[(5, "a")]));
        books.book(netdevs(&[(5, 10), (6, 60)]), holders(&[(5, "a")]));
        // What came before the next look was the first port's.
        books.book(netdevs(&[(5, 12), (6, 60)]), holders(&[(5, "b"), (6, "a")]));
        assert_eq!(moved(&books), [("a", 12), ("b", 0)]);
        books.book(netdevs(&[(5, 15), (6, 61)]), holders(&[(5, "b"), (6, "a")]));
        assert_eq!(moved(&books), [("a", 13), ("b", 3)]);
        books.retain(|port| *port == id("a"));
        books.book(netdevs(&[(5, 99), (6, 61)]), holders(&[(6, "a")]));
        books.retain(|port| *port == id("a"));
        books.book(netdevs(&[(5, 99), (6, 61)]), holders(&[(5, "c"), (6, "a")]));
        assert_eq!(moved(&books), [("a", 13), ("c", 0)], "nobody inherits from who is gone");
    }

    #[test]
    fn some_netdevs_are_booked_like_all_and_the_others_stay_as_they_were() {
        let mut books = Books::default();
        books.book_some(netdevs(&[(5, 7)]), &holders(&[(5, "a")]));
        assert_eq!(moved(&books), [], "not before all were read");
        books.book(netdevs(&[(5, 10), (6, 20)]), holders(&[(5, "a"), (6, "b")]));
        books.book_some(netdevs(&[(5, 12), (7, 1)]), &holders(&[(5, "c"), (6, "b"), (7, "d")]));
        assert_eq!(moved(&books), [("a", 2), ("b", 0), ("c", 0), ("d", 1)]);
        let stand = [(5, "c"), (6, "b"), (7, "d")];
        books.book(netdevs(&[(5, 15), (6, 21), (7, 1)]), holders(&stand));
        assert_eq!(moved(&books), [("a", 2), ("b", 1), ("c", 3), ("d", 1)]);
        books.book_some(netdevs(&[(5, 16)]), &holders(&[]));
        books.book_some(netdevs(&[(5, 17)]), &holders(&[(5, "a")]));
        assert_eq!(moved(&books)[..2], [("a", 3), ("b", 1)], "nobody stood there meanwhile");
        assert_eq!(moved(&books)[2], ("c", 4));
    }

    #[test]
    fn a_restart_goes_on_where_the_port_stands_where_it_stood() {
        let mut before = Books::default();
        before.book(netdevs(&[(5, 1000), (6, 0)]), holders(&[(5, "a"), (6, "b")]));
        before.book(netdevs(&[(5, 1010), (6, 20)]), holders(&[(5, "a"), (6, "b")]));
        let mut books = Books::default();
        for port in ["a", "b"].map(id) {
            books.carry(&port, before.ports()[&port], before.stands(&port));
        }
        // Meanwhile the one has gone on, and the other has another netdev.
        books.book(netdevs(&[(5, 1015), (7, 500)]), holders(&[(5, "a"), (7, "b")]));
        assert_eq!(moved(&books), [("a", 15), ("b", 20)]);
        books.book(netdevs(&[(5, 1015), (7, 501)]), holders(&[(5, "a"), (7, "b")]));
        assert_eq!(moved(&books), [("a", 15), ("b", 21)]);
    }
}
