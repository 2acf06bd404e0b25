//! Rates that are enforced (`police`), and the ways on from there.
//!
//! In come rates and bursts in bytes or packets, kept are bursts as the kernel keeps them: so a
//! policer that was read is the policer that was written.
//!
//! Sources: net/sched/act_police.c, `struct tc_police` in include/uapi/linux/pkt_cls.h, tc/tc_core.c
//! of iproute2.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};

use crate::ident::ChainId;
use crate::rule::Fnv1a;

/// What becomes of a frame where an action has more than one way on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Control {
    /// To the host's own stack (`ok`).
    Pass,
    /// The frame ends here.
    Drop,
    /// The next action.
    Pipe,
    /// The next rule that matches.
    Continue,
    /// The action at this place of the list, as [`crate::Action::Jump`].
    Jump(u8),
    /// The rules of this chain.
    Goto(ChainId),
}

impl Control {
    pub(super) const fn jump(self) -> Option<u8> {
        match self {
            Control::Jump(to) => Some(to),
            _ => None,
        }
    }

    pub(super) fn digest(self, into: &mut Fnv1a) {
        let (kind, number) = match self {
            Control::Pass => (1u8, 0),
            Control::Drop => (2, 0),
            Control::Pipe => (3, 0),
            Control::Continue => (4, 0),
            Control::Jump(to) => (5, u32::from(to)),
            Control::Goto(chain) => (6, chain.get()),
        };
        into.write(&[kind]);
        into.write(&number.to_be_bytes());
    }
}

impl fmt::Display for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Control::Pass => f.write_str("ok"),
            Control::Drop => f.write_str("drop"),
            Control::Pipe => f.write_str("pipe"),
            Control::Continue => f.write_str("continue"),
            Control::Jump(to) => write!(f, "jump {to}"),
            Control::Goto(chain) => write!(f, "goto chain {chain}"),
        }
    }
}

/// How much a policer lets pass, and what becomes of the rest. Unless told otherwise what exceeds
/// is dropped and what conforms goes on with the next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Police {
    pub(crate) limit: PoliceLimit,
    pub(crate) mtu: u32,
    pub(crate) exceed: Control,
    pub(crate) conform: Control,
}

/// What a policer counts. Bursts in ticks, as the kernel keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum PoliceLimit {
    Bytes { rate: NonZeroU64, burst: u32, peak: Option<NonZeroU64> },
    Packets { rate: NonZeroU64, burst: u32 },
    Size,
}

/// What the kernel takes as the largest frame where none is named: with a rate in bytes by the
/// cell size that `tc` then chooses (255 << 3), else any.
pub(crate) const POLICE_MTU_BYTES: u32 = 2040;
const POLICE_MTU_ANY: u32 = u32::MAX;

/// Ticks of the packet scheduler in a microsecond: each has 64 ns (`PSCHED_SHIFT`,
/// include/net/pkt_sched.h), as /proc/net/psched tells `tc`.
const TICKS_PER_MICROSECOND: f64 = 1000.0 / 64.0;

/// The time that so much takes at this rate, computed with the same roundings as `tc_calc_xmittime`
/// of tc/tc_core.c, so that a printed rule read by `tc` is the same rule.
fn ticks(rate: NonZeroU64, amount: u64) -> Option<u32> {
    let micros = 1_000_000.0 * (amount as f64 / rate.get() as f64);
    let ticks = (micros * TICKS_PER_MICROSECOND).ceil();
    (1.0..f64::from(u32::MAX)).contains(&ticks).then_some(ticks as u32)
}

/// How much the rate lets through in that time: an amount whose [`ticks`] they are, if there is
/// one.
fn amount(rate: NonZeroU64, burst: u32) -> u64 {
    let exact = u128::from(rate.get()) * u128::from(burst) / 15_625_000;
    let about = u64::try_from(exact).unwrap_or(u64::MAX);
    let near = [about, about.saturating_sub(1), about.saturating_add(1)];
    near.into_iter().find(|amount| ticks(rate, *amount) == Some(burst)).unwrap_or(about)
}

impl Police {
    const fn new(limit: PoliceLimit, mtu: u32) -> Police {
        Police { limit, mtu, exceed: Control::Drop, conform: Control::Pipe }
    }

    /// So many bytes a second and a burst of so many bytes; `None` where either is 0, or where the
    /// burst takes longer than the 275 seconds that the kernel can note.
    pub fn bytes(rate: u64, burst: u64) -> Option<Police> {
        let rate = NonZeroU64::new(rate)?;
        let limit = PoliceLimit::Bytes { rate, burst: ticks(rate, burst)?, peak: None };
        Some(Police::new(limit, POLICE_MTU_BYTES))
    }

    /// So many packets a second and a burst of so many; `None` as for [`Police::bytes`].
    pub fn packets(rate: u64, burst: u64) -> Option<Police> {
        let rate = NonZeroU64::new(rate)?;
        let limit = PoliceLimit::Packets { rate, burst: ticks(rate, burst)? };
        Some(Police::new(limit, POLICE_MTU_ANY))
    }

    /// Frames of so many bytes and no more; `None` for 0.
    pub const fn size(mtu: u32) -> Option<Police> {
        if mtu == 0 { None } else { Some(Police::new(PoliceLimit::Size, mtu)) }
    }

    /// And no frame of more than so many bytes; `None` for 0, and for less than 256 beside a rate
    /// in bytes (`tc` has no cell size for it, and the kernel wants one).
    #[must_use]
    pub const fn mtu(self, mtu: u32) -> Option<Police> {
        let bytes = matches!(self.limit, PoliceLimit::Bytes { .. });
        if mtu == 0 || bytes && mtu < 256 { None } else { Some(Police { mtu, ..self }) }
    }

    /// And at no moment more than so many bytes a second; `None` for 0, and where the limit is not
    /// in bytes.
    #[must_use]
    pub fn peak(self, rate: u64) -> Option<Police> {
        let PoliceLimit::Bytes { rate: of, burst, .. } = self.limit else { return None };
        let peak = Some(NonZeroU64::new(rate)?);
        Some(Police { limit: PoliceLimit::Bytes { rate: of, burst, peak }, ..self })
    }

    /// What becomes of what exceeds.
    #[must_use]
    pub const fn exceed(self, exceed: Control) -> Police {
        Police { exceed, ..self }
    }

    /// What becomes of what conforms; `None` for a goto, which the kernel refuses there.
    #[must_use]
    pub const fn conform(self, conform: Control) -> Option<Police> {
        match conform {
            Control::Goto(_) => None,
            _ => Some(Police { conform, ..self }),
        }
    }

    /// The policer that a kernel shows, or `None` where this type has no word for it.
    pub(crate) fn from_parts(limit: PoliceLimit, mtu: u32, exceed: Control) -> Option<Police> {
        let (PoliceLimit::Bytes { burst, .. } | PoliceLimit::Packets { burst, .. }) = limit else {
            return Police::size(mtu).map(|police| police.exceed(exceed));
        };
        if burst == 0 {
            return None;
        }
        Police::new(limit, 1).mtu(mtu).map(|police| police.exceed(exceed))
    }

    pub(super) fn digest(&self, into: &mut Fnv1a) {
        let (kind, rate, burst, peak) = match self.limit {
            PoliceLimit::Bytes { rate, burst, peak } => {
                (1u8, rate.get(), burst, peak.map_or(0, NonZeroU64::get))
            }
            PoliceLimit::Packets { rate, burst } => (2, rate.get(), burst, 0),
            PoliceLimit::Size => (3, 0, 0, 0),
        };
        into.write(&[kind]);
        into.write(&rate.to_be_bytes());
        into.write(&burst.to_be_bytes());
        into.write(&peak.to_be_bytes());
        self.exceed.digest(into);
        self.conform.digest(into);
    }
}

impl fmt::Display for Police {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("police")?;
        let mut usual = None;
        match self.limit {
            PoliceLimit::Bytes { rate, burst, peak } => {
                write!(f, " rate {rate}bps burst {}", amount(rate, burst))?;
                if let Some(peak) = peak {
                    write!(f, " peakrate {peak}bps")?;
                } else {
                    usual = Some(POLICE_MTU_BYTES);
                }
            }
            PoliceLimit::Packets { rate, burst } => {
                write!(f, " pkts_rate {rate} pkts_burst {}", amount(rate, burst))?;
                usual = Some(POLICE_MTU_ANY);
            }
            PoliceLimit::Size => {}
        }
        if usual != Some(self.mtu) {
            write!(f, " mtu {}", self.mtu)?;
        }
        // Only plain words stand around a slash without spaces.
        let plain = |control| !matches!(control, Control::Jump(_) | Control::Goto(_));
        let space = if plain(self.exceed) && plain(self.conform) { "" } else { " " };
        write!(f, " conform-exceed {}{space}/{space}{}", self.exceed, self.conform)
    }
}

/// The index of a policer that rules share. Indexes below [`PoliceIndex::FIRST`] are those that
/// the kernel gives to policers of one rule, from 1 upwards: so the index that a dump shows tells
/// the two apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoliceIndex(NonZeroU32);

impl PoliceIndex {
    /// The lowest.
    pub const FIRST: u32 = 1 << 30;

    /// The index, or `None` below [`PoliceIndex::FIRST`].
    pub const fn new(index: u32) -> Option<PoliceIndex> {
        match NonZeroU32::new(index) {
            Some(number) if index >= PoliceIndex::FIRST => Some(PoliceIndex(number)),
            _ => None,
        }
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for PoliceIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The number behind a word of the printed policer.
    fn printed(police: &Police, word: &str) -> u64 {
        let text = police.to_string();
        let mut words = text.split(' ').skip_while(|other| *other != word);
        words.nth(1).unwrap().trim_end_matches("bps").parse().unwrap()
    }

    proptest! {
        #[test]
        fn a_printed_burst_is_the_same_burst_when_it_is_read(
            rate in prop_oneof![1u64..1 << 10, 1u64..1 << 30, 1u64..1 << 37],
            burst in prop_oneof![1u64..1 << 10, 1u64..1 << 30],
        ) {
            if let Some(police) = Police::bytes(rate, burst) {
                let again = Police::bytes(printed(&police, "rate"), printed(&police, "burst"));
                prop_assert_eq!(again, Some(police));
            }
            if let Some(police) = Police::packets(rate, burst) {
                let (rate, burst) = (printed(&police, "pkts_rate"), printed(&police, "pkts_burst"));
                prop_assert_eq!(Police::packets(rate, burst), Some(police));
            }
        }
    }

    #[test]
    fn what_the_kernel_would_not_take_is_no_policer() {
        let slow = Police::bytes(1_000, 100).unwrap();
        assert_eq!(Police::bytes(0, 100), None);
        assert_eq!(Police::bytes(1_000, 0), None);
        // 300 seconds.
        assert_eq!(Police::bytes(1_000, 300_000), None);
        assert_eq!(slow.mtu(255), None);
        assert_eq!(slow.peak(0), None);
        assert_eq!(Police::packets(10, 10).unwrap().peak(20), None);
        assert_eq!(slow.conform(Control::Goto(ChainId::ZERO)), None);
        assert_eq!(Police::size(0), None);
    }

    #[test]
    fn a_policer_prints_as_tc_reads_it() {
        let slow = Police::bytes(125_000, 10_000).unwrap();
        let cases = [
            (slow, "police rate 125000bps burst 10000 conform-exceed drop/pipe"),
            (
                slow.mtu(1500).unwrap().peak(250_000).unwrap().exceed(Control::Pass),
                "police rate 125000bps burst 10000 peakrate 250000bps mtu 1500 \
                 conform-exceed ok/pipe",
            ),
            (
                Police::packets(100, 10).unwrap().exceed(Control::Jump(3)),
                "police pkts_rate 100 pkts_burst 10 conform-exceed jump 3 / pipe",
            ),
            (Police::size(1500).unwrap(), "police mtu 1500 conform-exceed drop/pipe"),
        ];
        for (police, expected) in cases {
            assert_eq!(police.to_string(), expected);
        }
    }
}
