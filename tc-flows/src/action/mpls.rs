//! Changes of a frame's MPLS label stack (`mpls`).
//!
//! Sources: net/sched/act_mpls.c, include/uapi/linux/tc_act/tc_mpls.h.

use std::fmt;
use std::num::NonZeroU8;

use crate::ident::EtherType;
use crate::key::{MplsLabel, MplsTc};
use crate::rule::Fnv1a;

/// A change of a frame's MPLS label stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mpls {
    /// The outer label is taken off; what is left has this ethertype.
    Pop(EtherType),
    /// A label is put between the Ethernet header and the rest.
    Push(MplsPush),
    /// A label is put before the whole frame, Ethernet header and all.
    MacPush(MplsPush),
    /// Fields of the outer label are replaced.
    Modify(MplsModify),
    /// The outer label's time to live goes down by one; a frame at whose end it is is dropped.
    DecTtl,
}

/// The label that `tcf_mpls_init` in net/sched/act_mpls.c does not write.
const IMPLICIT_NULL: u32 = 3;

/// A new MPLS label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MplsPush {
    pub(crate) label: MplsLabel,
    pub(crate) ttl: NonZeroU8,
    pub(crate) class: Option<MplsTc>,
    pub(crate) bottom: Option<bool>,
    pub(crate) multicast: bool,
}

impl MplsPush {
    /// This label with this time to live, in a unicast frame; `None` for label 3, which is never
    /// on a wire (RFC 3032, section 2.1).
    pub fn new(label: MplsLabel, ttl: NonZeroU8) -> Option<MplsPush> {
        let push = MplsPush { label, ttl, class: None, bottom: None, multicast: false };
        (label.get() != IMPLICIT_NULL).then_some(push)
    }

    /// Of this traffic class; else 0.
    #[must_use]
    pub const fn class(self, class: MplsTc) -> MplsPush {
        MplsPush { class: Some(class), ..self }
    }

    /// At the bottom of the stack or not; else as the frame demands.
    #[must_use]
    pub const fn bottom(self, bottom: bool) -> MplsPush {
        MplsPush { bottom: Some(bottom), ..self }
    }

    /// With the ethertype of multicast MPLS (0x8848).
    #[must_use]
    pub const fn multicast(self) -> MplsPush {
        MplsPush { multicast: true, ..self }
    }
}

/// Fields of a label to replace: those that were named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MplsModify {
    pub(crate) label: Option<MplsLabel>,
    pub(crate) class: Option<MplsTc>,
    pub(crate) ttl: Option<NonZeroU8>,
    pub(crate) bottom: Option<bool>,
}

impl MplsModify {
    /// None.
    pub const fn new() -> MplsModify {
        MplsModify { label: None, class: None, ttl: None, bottom: None }
    }

    /// This label; `None` for label 3, as for [`MplsPush::new`].
    #[must_use]
    pub fn label(self, label: MplsLabel) -> Option<MplsModify> {
        let modify = MplsModify { label: Some(label), ..self };
        (label.get() != IMPLICIT_NULL).then_some(modify)
    }

    /// This traffic class.
    #[must_use]
    pub const fn class(self, class: MplsTc) -> MplsModify {
        MplsModify { class: Some(class), ..self }
    }

    /// This time to live.
    #[must_use]
    pub const fn ttl(self, ttl: NonZeroU8) -> MplsModify {
        MplsModify { ttl: Some(ttl), ..self }
    }

    /// At the bottom of the stack or not.
    #[must_use]
    pub const fn bottom(self, bottom: bool) -> MplsModify {
        MplsModify { bottom: Some(bottom), ..self }
    }
}

impl Mpls {
    pub(super) fn digest(&self, into: &mut Fnv1a) {
        let push = |push: &MplsPush| {
            let MplsPush { label, ttl, class, bottom, multicast } = *push;
            (MplsModify { label: Some(label), class, ttl: Some(ttl), bottom }, multicast)
        };
        let (kind, (fields, multicast)) = match self {
            Mpls::Pop(ethertype) => {
                into.write(&[1]);
                return into.write(&ethertype.get().to_be_bytes());
            }
            Mpls::Push(new) => (2, push(new)),
            Mpls::MacPush(new) => (3, push(new)),
            Mpls::Modify(fields) => (4, (*fields, false)),
            Mpls::DecTtl => (5, Default::default()),
        };
        into.write(&[kind, u8::from(multicast)]);
        // All ones are no value of any of them.
        into.write(&fields.label.map_or(u32::MAX, MplsLabel::get).to_be_bytes());
        into.write(&[
            fields.class.map_or(u8::MAX, MplsTc::get),
            fields.ttl.map_or(0, NonZeroU8::get),
            fields.bottom.map_or(u8::MAX, u8::from),
        ]);
    }
}

impl fmt::Display for Mpls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let push = |name: &str, push: &MplsPush, f: &mut fmt::Formatter<'_>| {
            let proto = if push.multicast { "mpls_mc" } else { "mpls_uc" };
            write!(f, "{name} protocol {proto} label {}", push.label)?;
            fmt_label_rest(push.class, Some(push.ttl), push.bottom, f)
        };
        match self {
            Mpls::Pop(ethertype) => write!(f, "pop protocol {ethertype}"),
            Mpls::Push(new) => push("push", new, f),
            Mpls::MacPush(new) => push("mac_push", new, f),
            Mpls::Modify(MplsModify { label, class, ttl, bottom }) => {
                f.write_str("modify")?;
                if let Some(label) = label {
                    write!(f, " label {}", label)?;
                }
                fmt_label_rest(*class, *ttl, *bottom, f)
            }
            Mpls::DecTtl => f.write_str("dec_ttl"),
        }
    }
}

fn fmt_label_rest(
    class: Option<MplsTc>,
    ttl: Option<NonZeroU8>,
    bottom: Option<bool>,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    if let Some(class) = class {
        write!(f, " tc {class}")?;
    }
    if let Some(ttl) = ttl {
        write!(f, " ttl {ttl}")?;
    }
    if let Some(bottom) = bottom {
        write!(f, " bos {}", u8::from(bottom))?;
    }
    Ok(())
}
