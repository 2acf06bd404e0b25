//! How often a rule was hit, read from the attributes of its first action.
//!
//! In comes the content of an action's place, out go [`Stats`]; what is not there counts as zero.
//!
//! Sources: `TCA_STATS_*` in include/uapi/linux/gen_stats.h and the order in which
//! net/core/gen_stats.c writes them; `struct tcf_t` in pkt_cls.h.

use std::time::Duration;

use netlink_packet_route::tc::{TcStatsBasic, TcStatsQueue};

use super::action::{TCA_ACT_KIND, TCA_ACT_OPTIONS};
use super::read::{attrs, find};
use crate::stats::{Counters, Stats, Times};

const TCA_ACT_STATS: u16 = 4;

const TCA_STATS_BASIC: u16 = 1;
const TCA_STATS_QUEUE: u16 = 3;
const TCA_STATS_BASIC_HW: u16 = 7;
/// Follows a `TCA_STATS_BASIC` or `_HW` whose 32 bits do not hold the number of packets.
const TCA_STATS_PKT64: u16 = 8;

/// `tcf_t` counts in clock ticks, of which user space is shown 100 a second.
const TICK: Duration = Duration::from_millis(10);

/// What the action has counted.
pub(super) fn read_stats(action: &[u8]) -> Stats {
    let mut total = Counters::default();
    let mut hardware = Counters::default();
    let mut stats = Stats::default();
    let mut last = &mut total;
    for (kind, value) in attrs(find(action, TCA_ACT_STATS).unwrap_or_default()) {
        match kind {
            TCA_STATS_BASIC | TCA_STATS_BASIC_HW => {
                last = if kind == TCA_STATS_BASIC { &mut total } else { &mut hardware };
                if let Ok(basic) = TcStatsBasic::parse(value) {
                    *last = Counters { bytes: basic.bytes, packets: basic.packets.into() };
                }
            }
            TCA_STATS_PKT64 => last.packets = u64_at(value, 0).unwrap_or(last.packets),
            TCA_STATS_QUEUE => {
                if let Ok(queue) = TcStatsQueue::parse(value) {
                    (stats.drops, stats.overlimits) = (queue.drops, queue.overlimits);
                }
            }
            _ => {}
        }
    }
    stats.software = total.without(hardware);
    stats.hardware = hardware;
    stats.times = read_times(action);
    stats
}

/// `struct tcf_t`: install, lastuse, expires, firstuse. Older kernels lack the last.
fn read_times(action: &[u8]) -> Option<Times> {
    let kind = find(action, TCA_ACT_KIND)?;
    let times = match kind.split(|byte| *byte == 0).next()? {
        b"csum" | b"ct" => 2,
        b"police" => 6,
        _ => 1,
    };
    let times = find(find(action, TCA_ACT_OPTIONS)?, times)?;
    let ago = |at| {
        let ticks = u64_at(times, at)?;
        Some(TICK.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX)))
    };
    Some(Times {
        installed: ago(0)?,
        last_used: ago(8)?,
        first_used: ago(24).filter(|ago| !ago.is_zero()),
    })
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::super::Writer;
    use super::*;

    fn basic(bytes: u64, packets: u32) -> Vec<u8> {
        [&bytes.to_ne_bytes()[..], &packets.to_ne_bytes(), &[0; 4]].concat()
    }

    /// An action of this kind with these statistics and times.
    fn action(kind: &str, stats: &[(u16, Vec<u8>)], times: (u16, &[u64])) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes);
        writer.attr_str(TCA_ACT_KIND, kind.as_bytes());
        let nest = writer.nest(TCA_ACT_STATS);
        for (kind, value) in stats {
            writer.attr(*kind, value);
        }
        writer.end_nest(nest);
        let nest = writer.nest(TCA_ACT_OPTIONS);
        let tcf_t: Vec<u8> = times.1.iter().flat_map(|ticks| ticks.to_ne_bytes()).collect();
        writer.attr(times.0, &tcf_t);
        writer.end_nest(nest);
        bytes
    }

    #[test]
    fn software_is_what_hardware_did_not_count() {
        let queue = [0u32, 0, 5, 0, 6].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let stats = [
            (TCA_STATS_BASIC, basic(1_000, 10)),
            (TCA_STATS_BASIC_HW, basic(400, 4)),
            (TCA_STATS_QUEUE, queue),
        ];
        let stats = read_stats(&action("gact", &stats, (2, &[])));
        assert_eq!(stats.software, Counters { bytes: 600, packets: 6 });
        assert_eq!(stats.hardware, Counters { bytes: 400, packets: 4 });
        assert_eq!((stats.drops, stats.overlimits, stats.times), (5, 6, None));
    }

    #[test]
    fn a_64_bit_number_of_packets_belongs_to_what_stands_before_it() {
        let total: u64 = (7 << 32) + 3;
        let hardware: u64 = (5 << 32) + 1;
        let stats = [
            (TCA_STATS_BASIC, basic(u64::MAX, 3)),
            (TCA_STATS_PKT64, total.to_ne_bytes().to_vec()),
            (TCA_STATS_BASIC_HW, basic(1, 1)),
            (TCA_STATS_PKT64, hardware.to_ne_bytes().to_vec()),
        ];
        let stats = read_stats(&action("mirred", &stats, (2, &[])));
        assert_eq!(stats.software, Counters { bytes: u64::MAX - 1, packets: (2 << 32) + 2 });
        assert_eq!(stats.hardware, Counters { bytes: 1, packets: hardware });
    }

    #[test]
    fn hardware_ahead_of_the_total_leaves_software_at_zero() {
        let stats = [(TCA_STATS_BASIC, basic(9, 1)), (TCA_STATS_BASIC_HW, basic(10, 2))];
        assert_eq!(read_stats(&action("gact", &stats, (2, &[]))).software, Counters::default());
    }

    #[test]
    fn times_are_read_where_each_kind_of_action_has_them() {
        let second = |seconds| Duration::from_secs(seconds);
        for (kind, attr) in [("gact", 1), ("mirred", 1), ("ct", 2), ("csum", 2), ("police", 6)] {
            let times = read_stats(&action(kind, &[], (attr, &[900, 300, 0, 400]))).times;
            let expected =
                Times { installed: second(9), last_used: second(3), first_used: Some(second(4)) };
            assert_eq!(times, Some(expected), "{kind}");
        }
        let never = read_stats(&action("gact", &[], (1, &[900, 900, 0, 0]))).times.unwrap();
        assert_eq!(never.first_used, None);
        let older = read_stats(&action("gact", &[], (1, &[900, 300, 0]))).times.unwrap();
        assert_eq!((older.last_used, older.first_used), (second(3), None));
    }
}
