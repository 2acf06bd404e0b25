//! What the kernel shall note beside a frame (`skbedit`).
//!
//! Sources: net/sched/act_skbedit.c, include/uapi/linux/tc_act/tc_skbedit.h.

use std::fmt;

use crate::rule::Fnv1a;

/// What the kernel shall note beside a frame: one thing at least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SkbEdit {
    pub(crate) priority: Option<u32>,
    pub(crate) mark: Option<(u32, Option<u32>)>,
    pub(crate) queue: Option<u16>,
    pub(crate) packet_type: Option<PacketType>,
    pub(crate) inherit_dsfield: bool,
}

/// One thing that the kernel notes beside a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SkbField {
    /// Its priority, or the class that it belongs to (major in the upper 16 bits).
    Priority(u32),
    /// Its mark.
    Mark(u32),
    /// Those bits of its mark.
    MarkMasked {
        /// The bits.
        mark: u32,
        /// Which of them count.
        mask: u32,
    },
    /// The queue that it leaves by; at an ingress hook in hardware only.
    Queue(u16),
    /// Whom it is meant for.
    PacketType(PacketType),
    /// Its priority, from the type of service of its IP header.
    InheritDsfield,
}

/// Whom a frame is meant for (`PACKET_*`, include/uapi/linux/if_packet.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum PacketType {
    /// This host.
    Host = 0,
    /// All.
    Broadcast = 1,
    /// A group.
    Multicast = 2,
    /// Somebody else.
    OtherHost = 3,
}

impl PacketType {
    pub(crate) const ALL: [PacketType; 4] =
        [PacketType::Host, PacketType::Broadcast, PacketType::Multicast, PacketType::OtherHost];
}

impl SkbEdit {
    /// This alone.
    pub const fn new(field: SkbField) -> SkbEdit {
        let none = SkbEdit {
            priority: None,
            mark: None,
            queue: None,
            packet_type: None,
            inherit_dsfield: false,
        };
        none.and(field)
    }

    /// This too, in the place of what was said of the same before.
    #[must_use]
    pub const fn and(self, field: SkbField) -> SkbEdit {
        match field {
            SkbField::Priority(priority) => SkbEdit { priority: Some(priority), ..self },
            SkbField::Mark(mark) => SkbEdit { mark: Some((mark, None)), ..self },
            SkbField::MarkMasked { mark, mask } => {
                SkbEdit { mark: Some((mark, Some(mask))), ..self }
            }
            SkbField::Queue(queue) => SkbEdit { queue: Some(queue), ..self },
            SkbField::PacketType(to) => SkbEdit { packet_type: Some(to), ..self },
            SkbField::InheritDsfield => SkbEdit { inherit_dsfield: true, ..self },
        }
    }

    pub(super) fn digest(&self, into: &mut Fnv1a) {
        let mut optional = |number: Option<u32>| {
            into.write(&[u8::from(number.is_some())]);
            into.write(&number.unwrap_or(0).to_be_bytes());
        };
        optional(self.priority);
        optional(self.mark.map(|(mark, _)| mark));
        optional(self.mark.and_then(|(_, mask)| mask));
        optional(self.queue.map(u32::from));
        optional(self.packet_type.map(|to| to as u32));
        into.write(&[u8::from(self.inherit_dsfield)]);
    }
}

impl fmt::Display for SkbEdit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        let mut next = || std::mem::replace(&mut between, " ");
        if let Some(queue) = self.queue {
            write!(f, "{}queue_mapping {queue}", next())?;
        }
        if let Some(priority) = self.priority {
            write!(f, "{}priority {:x}:{:x}", next(), priority >> 16, priority & 0xffff)?;
        }
        if let Some((mark, mask)) = self.mark {
            write!(f, "{}mark {mark:#x}", next())?;
            if let Some(mask) = mask {
                write!(f, "/{mask:#x}")?;
            }
        }
        if let Some(to) = self.packet_type {
            let name = match to {
                PacketType::Host => "host",
                PacketType::Broadcast => "broadcast",
                PacketType::Multicast => "multicast",
                PacketType::OtherHost => "otherhost",
            };
            write!(f, "{}ptype {name}", next())?;
        }
        if self.inherit_dsfield {
            write!(f, "{}inheritdsfield", next())?;
        }
        Ok(())
    }
}
