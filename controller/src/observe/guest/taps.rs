//! The taps of this network namespace that somebody is attached to, as rtnetlink shows them.
//!
//! In: the kernel's list of links of kind `tun`. Out: names. The `iff:` line of a descriptor
//! (`tun_chr_show_fdinfo` in `drivers/net/tun.c`) names a tap without its network namespace, which
//! may be another than that of the process that holds it: a descriptor can be passed on, and a tap
//! moved. A tap has carrier exactly while a descriptor is attached to it, so that a descriptor whose
//! name has no carrier here is of a tap elsewhere. Blocks for as long as the kernel takes.

use std::{collections::BTreeSet, io};

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkExtentMask, LinkInfo, LinkMessage},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Asks for all taps, without their counters.
fn request() -> Vec<u8> {
    let mut taps = LinkMessage::default();
    taps.attributes = vec![
        LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Tun)]),
    ];
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, RouteNetlinkMessage::GetLink(taps).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The name of a link that is a tap and attached.
fn attached_in(link: LinkMessage) -> Option<String> {
    let (mut name, mut carrier, mut tap) = (None, false, false);
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text),
            LinkAttribute::Carrier(has) => carrier = has == 1,
            LinkAttribute::LinkInfo(info) => tap = info.contains(&LinkInfo::Kind(InfoKind::Tun)),
            _ => {}
        }
    }
    name.filter(|_| carrier && tap)
}

/// Takes the names in one datagram; whether more are to come.
fn take(mut datagram: &[u8], names: &mut BTreeSet<String>) -> io::Result<bool> {
    while !datagram.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        match message.payload {
            NetlinkPayload::Done(_) => return Ok(false),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                names.extend(attached_in(link));
            }
            _ => {}
        }
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
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
    use netlink_packet_core::DoneMessage;
    use proptest::prelude::*;

    use super::*;

    fn bytes(payload: NetlinkPayload<RouteNetlinkMessage>) -> Vec<u8> {
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn link(name: &str, carrier: u8, kind: InfoKind) -> Vec<u8> {
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(name.into()),
            LinkAttribute::Carrier(carrier),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]),
        ];
        bytes(RouteNetlinkMessage::NewLink(link).into())
    }

    #[test]
    fn only_taps_with_carrier_are_attached() {
        let links =
            [("tap0", 1, InfoKind::Tun), ("tap1", 0, InfoKind::Tun), ("v0", 1, InfoKind::Veth)];
        let all = links.map(|(name, carrier, kind)| link(name, carrier, kind)).concat();
        let mut names = BTreeSet::new();
        assert!(take(&all, &mut names).unwrap());
        assert_eq!(names, ["tap0".to_owned()].into());
        let done = bytes(NetlinkPayload::Done(DoneMessage::default()));
        assert!(!take(&done, &mut names).unwrap());
    }

    #[test]
    fn a_link_that_cannot_be_read_is_an_error_and_not_one_that_is_not_there() {
        let mut cut = link("tap0", 1, InfoKind::Tun);
        cut.truncate(cut.len() - 4);
        assert!(take(&cut, &mut BTreeSet::new()).is_err());
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
