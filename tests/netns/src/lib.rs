//! Shared by the suites here: links, small values, seeded randomness, what the kernel and `tc` show
//! of a hook, frames and the ends where they are sent and received, and the lab's igb.
//!
//! Nothing here judges a rule: what must be alike is said in the suites.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "what fails here fails the test")]
#![expect(clippy::print_stdout, reason = "seeds are for who reads a failed test")]
#![expect(clippy::missing_panics_doc, reason = "what fails here fails the test")]

pub mod ends;
pub mod frames;
pub mod igb;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use lab::net;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use serde_json::Value;
use tc_flows::{
    ChainId, Handle, Hook, Ifindex, Mac, Mode, Op, Owner, Prio, Rule, VlanId, VlanTpid, encode,
};

/// Software emulation is slow, and the suites run side by side.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The customer's tag.
pub const Q: VlanTpid = VlanTpid::Dot1Q;

/// The provider's tag.
pub const AD: VlanTpid = VlanTpid::Dot1Ad;

// ---------------------------------------------------------------- links

/// The interface index of a link of this network namespace.
pub fn ifindex(link: &str) -> Ifindex {
    let index = std::fs::read_to_string(format!("/sys/class/net/{link}/ifindex")).expect(link);
    Ifindex::new(index.trim().parse().unwrap()).unwrap()
}

/// A veth pair, both ends up, IPv6 autoconfiguration off.
pub fn veth(link: &str, peer: &str) {
    net::ip(&format!("link add {link} type veth peer name {peer}")).unwrap();
    for end in [link, peer] {
        net::ip(&format!("link set {end} addrgenmode none up")).unwrap();
    }
}

// ---------------------------------------------------------------- small values

/// This chain.
pub fn chain(number: u32) -> ChainId {
    ChainId::new(number).unwrap()
}

/// This prio.
pub fn prio(number: u16) -> Prio {
    Prio::new(number).unwrap()
}

/// This VLAN id.
pub fn vid(number: u16) -> VlanId {
    VlanId::new(number).unwrap()
}

/// A unicast address, locally administered.
pub const fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

/// An address of the documentation's network (RFC 5737).
pub fn v4(last: u8) -> Ipv4Addr {
    [192, 0, 2, last].into()
}

/// An address of the documentation's network (RFC 3849).
pub fn v6(last: u16) -> Ipv6Addr {
    [0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into()
}

/// The change that adds this rule under this handle.
pub fn add(rule: Rule, handle: u32) -> Op {
    Op::Add { rule, handle: Handle(handle) }
}

// ---------------------------------------------------------------- randomness

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere for one seed.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// From the seed in `TC_FLOWS_SEED`, or another one each time, which is printed.
    pub fn seeded() -> Random {
        let seed = std::env::var("TC_FLOWS_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| {
            u64::from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos())
        });
        // The test harness shows it where a test fails.
        println!("TC_FLOWS_SEED={seed}");
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 up to, not including, `below`.
    pub fn below(&mut self, below: usize) -> usize {
        (self.number() % below as u64) as usize
    }

    /// One of these.
    pub fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }

    /// Any byte.
    pub fn byte(&mut self) -> u8 {
        self.number() as u8
    }

    /// True once in so many times.
    pub fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    /// A value once in so many times.
    pub fn maybe<T>(&mut self, one_in: usize, value: impl FnOnce(&mut Random) -> T) -> Option<T> {
        self.chance(one_in).then(|| value(self))
    }
}

// ---------------------------------------------------------------- what tc shows

/// The filters at a place (`dev X ingress`, `block 7`) as `tc` shows them, without what the kernel
/// or `tc` adds to a rule, by chain and prio. The first action's cookie is the owner's, and left
/// out too.
pub fn shown_by_tc(place: &str) -> BTreeMap<(u64, u64), Value> {
    let shown = net::tc_json(&format!("filter show {place}")).unwrap();
    let mut filters = BTreeMap::new();
    for mut filter in shown.as_array().cloned().unwrap_or_default() {
        let Some(options) = filter["options"].as_object_mut().filter(|o| o.contains_key("handle"))
        else {
            continue;
        };
        options.remove("handle");
        let actions = options.get_mut("actions").and_then(Value::as_array_mut);
        for action in actions.into_iter().flatten() {
            let first = action["order"] == 1;
            let action = action.as_object_mut().unwrap();
            for added in ["index", "ref", "bind", "installed", "last_used", "stats"] {
                action.remove(added);
            }
            if first {
                action.remove("cookie");
            }
        }
        let place = (filter["chain"].as_u64().unwrap_or(0), filter["pref"].as_u64().unwrap());
        let before = filters.insert(place, filter);
        assert!(before.is_none(), "this listing is for one rule a prio");
    }
    filters
}

// ---------------------------------------------------------------- what the kernel dumps

/// `TCA_OPTIONS` (include/uapi/linux/rtnetlink.h).
pub const OPTIONS: u16 = 2;

/// A number in the byte order of the machine.
pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes(bytes[at..at + 2].try_into().unwrap())
}

/// A number in the byte order of the machine.
pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// The attributes of a region, without the flag that marks nests.
pub fn tlvs(mut region: &[u8]) -> Vec<(u16, &[u8])> {
    let mut found = Vec::new();
    while region.len() >= 4 {
        let len = usize::from(u16_at(region, 0));
        found.push((u16_at(region, 2) & 0x3fff, &region[4..len]));
        region = region.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// The value of the first attribute of this number.
pub fn find(region: &[u8], wanted: u16) -> Option<&[u8]> {
    tlvs(region).into_iter().find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// The message with which tc-flows adds this rule.
pub fn encoded(rule: &Rule, owner: Owner) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&[add(rule.clone(), 1)], owner, Mode::Fast, 1, &mut bytes);
    bytes
}

/// `TCA_OPTIONS` of a message about a filter.
pub fn options(message: &[u8]) -> &[u8] {
    // nlmsghdr, tcmsg.
    find(&message[36..], OPTIONS).unwrap()
}

/// The messages in which the kernel dumps the filters of a hook, by prio: one rule a prio.
pub fn dumped(hook: Hook) -> BTreeMap<u16, Vec<u8>> {
    // TCM_IFINDEX_MAGIC_BLOCK, TC_H_MIN_INGRESS, TC_H_MIN_EGRESS (include/uapi/linux).
    let (ifindex, parent) = match hook {
        Hook::Block(block) => (u32::MAX, block.get()),
        Hook::Ingress(ifindex) => (ifindex.get(), 0xffff_fff2),
        Hook::Egress(ifindex) => (ifindex.get(), 0xffff_fff3),
    };
    let mut request = Vec::new();
    request.extend(36u32.to_ne_bytes());
    request.extend(46u16.to_ne_bytes()); // RTM_GETTFILTER
    request.extend(0x301u16.to_ne_bytes()); // NLM_F_REQUEST | NLM_F_DUMP
    request.extend([0; 12]);
    request.extend(ifindex.to_ne_bytes());
    request.extend([0; 4]);
    request.extend(parent.to_ne_bytes());
    request.extend([0; 4]);
    let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
    socket.bind_auto().unwrap();
    socket.connect(&SocketAddr::new(0, 0)).unwrap();
    socket.send(&request, 0).unwrap();
    let mut filters = BTreeMap::new();
    loop {
        // The kernel makes its datagrams as large as the room that it sees, and a rule that does
        // not fit into one ends the dump.
        let mut room = vec![0; 64 << 10];
        let (len, _) = socket.recv_from(&mut &mut room[..], 0).unwrap();
        let mut rest = &room[..len];
        while rest.len() >= 16 {
            let message = &rest[..u32_at(rest, 0) as usize];
            rest = rest.get(message.len().next_multiple_of(4)..).unwrap_or_default();
            match u16_at(message, 4) {
                3 => return filters, // NLMSG_DONE
                // RTM_NEWTFILTER; a handle of 0 stands for a whole prio.
                44 if u32_at(message, 24) == 0 => {}
                44 => {
                    let prio = (u32_at(message, 32) >> 16) as u16;
                    let before = filters.insert(prio, message.to_vec());
                    assert!(before.is_none(), "this dump is for one rule a prio");
                }
                other => panic!("message {other}: {message:?}"),
            }
        }
    }
}
