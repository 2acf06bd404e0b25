//! The taps of this network namespace that somebody is attached to, as rtnetlink shows them.
//!
//! In: the kernel's list of links of kind `tun`. Out: names. The `iff:` line of a descriptor
//! (`tun_chr_show_fdinfo` in `drivers/net/tun.c`) names a tap without its network namespace, which
//! may be another than that of the process that holds it: a descriptor can be passed on, and a tap
//! moved. A tap has carrier exactly while a descriptor is attached to it, so that a descriptor whose
//! name has no carrier here is of a tap elsewhere. Blocks for as long as the kernel takes.

use std::{collections::BTreeSet, io};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use crate::eswitch::netlink::{attributes, put, put_nested, put_text, text, u16_at, u32_at};

/// Numbers of `include/uapi/linux/netlink.h` and `include/uapi/linux/rtnetlink.h`.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
/// `sizeof(struct nlmsghdr)` and `sizeof(struct ifinfomsg)`.
const MESSAGE_HEADER: usize = 16;
const LINK_HEADER: usize = 16;

/// `IFLA_*` of `include/uapi/linux/if_link.h`.
mod attribute {
    pub(super) const IFNAME: u16 = 3;
    pub(super) const LINKINFO: u16 = 18;
    pub(super) const EXT_MASK: u16 = 29;
    pub(super) const CARRIER: u16 = 33;
    /// `IFLA_INFO_KIND`, inside `IFLA_LINKINFO`.
    pub(super) const INFO_KIND: u16 = 1;
}

/// `RTEXT_FILTER_SKIP_STATS`.
const SKIP_STATS: u32 = 8;

/// The kind of taps.
const KIND: &str = "tun";

fn request() -> Vec<u8> {
    let mut message = vec![0; MESSAGE_HEADER + LINK_HEADER];
    put(&mut message, attribute::EXT_MASK, &SKIP_STATS.to_ne_bytes());
    put_nested(&mut message, attribute::LINKINFO, |info| {
        put_text(info, attribute::INFO_KIND, KIND);
    });
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&DUMP.to_ne_bytes());
    message
}

/// The name of an attached tap in an `RTM_NEWLINK`.
fn attached_in(link: &[u8]) -> Option<String> {
    let (mut name, mut carrier, mut tap) = (None, false, false);
    for (kind, value) in attributes(link.get(LINK_HEADER..)?) {
        match kind {
            attribute::IFNAME => name = Some(text(value)),
            attribute::CARRIER => carrier = value.first() == Some(&1),
            attribute::LINKINFO => {
                tap = attributes(value)
                    .any(|(kind, value)| kind == attribute::INFO_KIND && text(value) == KIND);
            }
            _ => {}
        }
    }
    name.filter(|_| carrier && tap)
}

/// Takes the names in one datagram; whether more are to come.
fn take(mut datagram: &[u8], names: &mut BTreeSet<String>) -> io::Result<bool> {
    while let (Some(length), Some(kind)) = (u32_at(datagram, 0), u16_at(datagram, 4)) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(content) = datagram.get(MESSAGE_HEADER..length) else { break };
        match kind {
            NLMSG_DONE => return Ok(false),
            NLMSG_ERROR => {
                let errno = u32_at(content, 0).unwrap_or(0).cast_signed();
                return Err(io::Error::from_raw_os_error(errno.wrapping_neg()));
            }
            RTM_NEWLINK => names.extend(attached_in(content)),
            _ => {}
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// The taps of the calling thread's network namespace that a descriptor is attached to.
pub(crate) fn attached() -> io::Result<BTreeSet<String>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.send_to(&request(), &SocketAddr::new(0, 0), 0)?;
    let mut names = BTreeSet::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if !take(&datagram, &mut names)? {
            return Ok(names);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn link(name: &str, carrier: u8, kind: &str) -> Vec<u8> {
        let mut message = vec![0; MESSAGE_HEADER + LINK_HEADER];
        put_text(&mut message, attribute::IFNAME, name);
        put(&mut message, attribute::CARRIER, &[carrier]);
        put_nested(&mut message, attribute::LINKINFO, |info| {
            put_text(info, attribute::INFO_KIND, kind);
        });
        let length = u32::try_from(message.len()).unwrap();
        message[..4].copy_from_slice(&length.to_ne_bytes());
        message[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
        message
    }

    #[test]
    fn only_taps_with_carrier_are_attached() {
        let all = [link("tap0", 1, "tun"), link("tap1", 0, "tun"), link("v0", 1, "veth")].concat();
        let mut names = BTreeSet::new();
        assert!(take(&all, &mut names).unwrap());
        assert_eq!(names, ["tap0".to_owned()].into());
        let mut done = vec![0; MESSAGE_HEADER + 4];
        done[0] = 20;
        done[4] = 3;
        assert!(!take(&done, &mut names).unwrap());
    }

    #[test]
    fn this_kernel_answers() {
        attached().unwrap();
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = take(&bytes, &mut BTreeSet::new());
        }
    }
}
