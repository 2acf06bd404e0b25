//! What a port may send from, beyond its MAC addresses.
//!
//! In: a port's spec. Out: for each of its MAC addresses the payloads that it may send, no two of
//! which any frame could be. No rules here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use api::{
    resources::{AddressPair, PortSpec},
    types::{IpPrefix, MacAddr},
};
use tc_flows::{
    ArpMatch, EtherType, Ipv4Match, Ipv4Prefix, Ipv6Match, Ipv6Prefix, Mac, Payload, Ports,
};

/// What a port whose IP addresses are checked may send from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sources {
    /// For the port's own addresses.
    ips: Vec<IpPrefix>,
    own: Vec<MacAddr>,
    pairs: Vec<AddressPair>,
    /// In order.
    ethertypes: Vec<EtherType>,
}

impl Sources {
    /// Of a port; none where nothing but MAC addresses is checked.
    pub(super) fn of(spec: &PortSpec) -> Option<Sources> {
        if spec.ips.is_empty() {
            return None;
        }
        let mut ethertypes: Vec<EtherType> =
            spec.ethertypes.iter().filter_map(|number| EtherType::new(*number)).collect();
        ethertypes.sort_unstable();
        ethertypes.dedup();
        Some(Sources {
            ips: spec.ips.clone(),
            own: spec.macs.clone(),
            pairs: spec.allowed_address_pairs.clone(),
            ethertypes,
        })
    }

    /// The IP addresses that may stand beside this MAC address: those of the port, unless the
    /// address is there for a pair only.
    fn ips(&self, mac: MacAddr) -> Vec<IpPrefix> {
        let named = |pair: &&AddressPair| pair.mac == Some(mac);
        let is_own = self.own.contains(&mac) || !self.pairs.iter().any(|pair| named(&pair));
        let of_pairs = self.pairs.iter().filter(|pair| named(pair) || is_own && pair.mac.is_none());
        let own = self.ips.iter().copied().filter(|_| is_own);
        own.chain(of_pairs.map(|pair| pair.ip)).collect()
    }

    /// The same with the address that IPv6 makes of this MAC address, none within another.
    pub(super) fn prefixes(&self, mac: MacAddr) -> Vec<IpPrefix> {
        let mut ips = self.ips(mac);
        ips.push(IpPrefix::host(link_local(mac).into()));
        without_covered(ips)
    }

    /// Ethertypes of which nothing inside is checked, in order.
    pub(super) fn ethertypes(&self) -> &[EtherType] {
        &self.ethertypes
    }

    /// What may be sent from this MAC address.
    pub(super) fn payloads(&self, mac: MacAddr) -> Vec<Payload> {
        let ips = self.prefixes(mac);
        let any = |address: IpAddr| ips.iter().any(|ip| ip.contains(address));
        let mut payloads: Vec<Payload> = Vec::new();
        for ip in &ips {
            match ip.addr() {
                IpAddr::V4(addr) => {
                    let Some(prefix) = Ipv4Prefix::new(addr, ip.prefix_len()) else { continue };
                    payloads.push(Ipv4Match::any().src_in(prefix).into());
                    payloads.push(ArpMatch::any().sha(Mac(mac.0)).sip_in(prefix).into());
                }
                IpAddr::V6(addr) => {
                    let Some(prefix) = Ipv6Prefix::new(addr, ip.prefix_len()) else { continue };
                    payloads.push(Ipv6Match::any().src_in(prefix).into());
                }
            }
        }
        if !any(Ipv4Addr::UNSPECIFIED.into()) {
            let none = Ipv4Addr::UNSPECIFIED;
            let ports = Ports::any().src(DHCP_CLIENT).dst(DHCP_SERVER);
            payloads.push(Ipv4Match::any().src(none).udp(ports).into());
            payloads.push(ArpMatch::any().op(ARP_REQUEST).sha(Mac(mac.0)).sip(none).into());
        }
        if !any(Ipv6Addr::UNSPECIFIED.into()) {
            let solicitation = Ipv6Match::any().src(Ipv6Addr::UNSPECIFIED);
            payloads.push(solicitation.icmp_type(NEIGHBOR_SOLICITATION).into());
        }
        payloads.push(EtherType::RARP.into());
        payloads.extend(self.ethertypes.iter().map(|ethertype| Payload::from(*ethertype)));
        payloads
    }
}

/// The interface identifier of a MAC address (RFC 4291, appendix A) below fe80::/64.
fn link_local(MacAddr([a, b, c, d, e, f]): MacAddr) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// These without those that others contain.
fn without_covered(mut ips: Vec<IpPrefix>) -> Vec<IpPrefix> {
    ips.sort_unstable();
    ips.dedup();
    let all = ips.clone();
    ips.retain(|ip| all.iter().all(|other| other == ip || !other.covers(*ip)));
    ips
}

/// RFC 2131, section 4.1.
pub(super) const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
/// RFC 8415, section 7.2.
pub(super) const DHCPV6_SERVER: u16 = 547;
/// RFC 4861, section 4.
pub(super) const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
/// RFC 826.
const ARP_REQUEST: u8 = 1;
