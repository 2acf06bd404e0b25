//! Chains, their templates, and the qdiscs whose blocks they are in, as netlink bytes, and back.
//!
//! In go places and templates, out come `RTM_*CHAIN` and `RTM_*QDISC` messages; in come messages
//! of a dump of chains, out go chains.
//!
//! Sources: `tc_ctl_chain` and `tc_chain_fill_node` in net/sched/cls_api.c; `fl_tmplt_create` in
//! net/sched/cls_flower.c; `TCA_INGRESS_BLOCK` in include/uapi/linux/rtnetlink.h and
//! `qdisc_block_indexes_set` in net/sched/sch_api.c.

use super::key::{FoundKeys, Hidden, TCA_FLOWER_KEY_ETH_TYPE};
use super::{
    CLSACT_HANDLE, FLOWER, Message, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST,
    RTM_DELCHAIN, RTM_DELQDISC, RTM_NEWCHAIN, RTM_NEWQDISC, TC_H_CLSACT, TCA_CHAIN, TCA_KIND,
    TCA_OPTIONS, TCMSG, Writer, attrs, find, place, u16_at, u32_at,
};
use crate::ident::{BlockId, ChainId, ETH_P_ALL, Hook, Ifindex};
use crate::key::Match;

const RTM_GETCHAIN: u16 = 102;

const TCA_INGRESS_BLOCK: u16 = 13;
const TCA_EGRESS_BLOCK: u16 = 14;

impl Writer<'_> {
    fn chain(&mut self, kind: u16, flags: u16, hook: Hook, chain: ChainId, seq: u32) {
        self.begin(kind, NLM_F_REQUEST | NLM_F_ACK | flags, seq);
        let (ifindex, parent) = place(hook);
        self.tcmsg(ifindex, 0, parent, 0);
        self.attr(TCA_CHAIN, &chain.get().to_ne_bytes());
    }

    /// The request for a chain that is not there yet.
    pub(crate) fn add_chain(
        &mut self,
        hook: Hook,
        chain: ChainId,
        template: Option<&Match>,
        seq: u32,
    ) {
        self.chain(RTM_NEWCHAIN, NLM_F_CREATE | NLM_F_EXCL, hook, chain, seq);
        if let Some(template) = template {
            self.attr_str(TCA_KIND, FLOWER);
            let options = self.nest(TCA_OPTIONS);
            self.keys(template);
            self.end_nest(options);
        }
        self.end();
    }

    /// The request that a chain be gone, with all that stands in it.
    pub(crate) fn delete_chain(&mut self, hook: Hook, chain: ChainId, seq: u32) {
        self.chain(RTM_DELCHAIN, 0, hook, chain, seq);
        self.end();
    }

    /// The request for every chain of a hook.
    pub(crate) fn dump_chains(&mut self, hook: Hook, seq: u32) {
        self.begin(RTM_GETCHAIN, NLM_F_REQUEST | NLM_F_DUMP, seq);
        let (ifindex, parent) = place(hook);
        self.tcmsg(ifindex, 0, parent, 0);
        self.end();
    }

    /// The request for an ingress or clsact qdisc, refused where either exists.
    pub(crate) fn add_qdisc(
        &mut self,
        ifindex: Ifindex,
        kind: &str,
        ingress: Option<BlockId>,
        egress: Option<BlockId>,
        seq: u32,
    ) {
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        self.begin(RTM_NEWQDISC, flags, seq);
        self.tcmsg(ifindex.get(), CLSACT_HANDLE, TC_H_CLSACT, 0);
        self.attr_str(TCA_KIND, kind.as_bytes());
        for (attr, block) in [(TCA_INGRESS_BLOCK, ingress), (TCA_EGRESS_BLOCK, egress)] {
            if let Some(block) = block {
                self.attr(attr, &block.get().to_ne_bytes());
            }
        }
        self.end();
    }

    /// The request that the ingress or clsact qdisc be gone.
    pub(crate) fn delete_qdisc(&mut self, ifindex: Ifindex, seq: u32) {
        self.begin(RTM_DELQDISC, NLM_F_REQUEST | NLM_F_ACK, seq);
        self.tcmsg(ifindex.get(), CLSACT_HANDLE, TC_H_CLSACT, 0);
        self.end();
    }
}

/// A chain, as a dump shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChainMessage {
    pub(crate) chain: ChainId,
    /// Nothing where it has none, an inner nothing where it is none that this crate has words for.
    pub(crate) template: Option<Option<Match>>,
}

impl Message<'_> {
    /// Where this is a chain: the chain.
    pub(crate) fn chain(&self) -> Option<ChainMessage> {
        if self.kind != RTM_NEWCHAIN {
            return None;
        }
        let attrs = self.payload.get(TCMSG..)?;
        let chain = ChainId::new(u32_at(find(attrs, TCA_CHAIN)?, 0)?)?;
        let template = find(attrs, TCA_KIND).map(|kind| {
            let is_flower = kind.split(|byte| *byte == 0).next() == Some(FLOWER);
            is_flower.then(|| read_template(find(attrs, TCA_OPTIONS)?)).flatten()
        });
        Some(ChainMessage { chain, template })
    }
}

fn read_template(options: &[u8]) -> Option<Match> {
    let protocol = match find(options, TCA_FLOWER_KEY_ETH_TYPE) {
        Some(ethertype) => u16::from_be_bytes(u16_at(ethertype, 0)?.to_ne_bytes()),
        None => ETH_P_ALL,
    };
    let mut keys = FoundKeys::none();
    for (attr, value) in attrs(options) {
        keys.note(attr, value);
    }
    Some(Match::from_parts(protocol, keys.fields(protocol, Hidden::Nothing)?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Messages;
    use super::*;
    use crate::arbitrary::{chain, hook, ifindex, matches};

    fn written(write: impl FnOnce(&mut Writer<'_>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut Writer::new(&mut bytes));
        bytes
    }

    fn read(bytes: &[u8]) -> Option<ChainMessage> {
        Messages::new(bytes).next()?.chain()
    }

    proptest! {
        #[test]
        fn a_template_reads_back_as_the_keys_that_were_written(template in matches()) {
            let bytes = written(|writer| writer.add_chain(hook(), chain(7), Some(&template), 1));
            let expected = ChainMessage { chain: chain(7), template: Some(Some(template)) };
            prop_assert_eq!(read(&bytes), Some(expected));
        }

        #[test]
        fn a_damaged_chain_never_panics(
            template in matches(), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut bytes =
                written(|writer| writer.add_chain(hook(), chain(7), Some(&template), 1));
            let at = at.index(bytes.len());
            bytes[at] = byte;
            read(&bytes);
        }
    }

    #[test]
    fn a_chain_without_a_template_has_none_and_anothers_template_is_not_read() {
        let bytes = written(|writer| writer.add_chain(hook(), chain(7), None, 1));
        assert_eq!(read(&bytes), Some(ChainMessage { chain: chain(7), template: None }));
        let bytes = written(|writer| {
            writer.chain(RTM_NEWCHAIN, 0, hook(), chain(7), 1);
            writer.attr_str(TCA_KIND, b"other");
            writer.end();
        });
        assert_eq!(read(&bytes), Some(ChainMessage { chain: chain(7), template: Some(None) }));
    }

    /// Expected bytes are written for a little-endian machine.
    #[cfg(target_endian = "little")]
    #[test]
    fn a_clsact_with_blocks_is_these_bytes() {
        let block = |number| BlockId::new(number);
        let bytes =
            written(|writer| writer.add_qdisc(ifindex(7), "clsact", block(22), block(23), 5));
        #[rustfmt::skip]
        let expected: &[u8] = &[
            // nlmsghdr: length, RTM_NEWQDISC, REQUEST|ACK|CREATE|EXCL, seq, port
            64, 0, 0, 0,  36, 0,  0x05, 0x06,  5, 0, 0, 0,  0, 0, 0, 0,
            // tcmsg: family, ifindex 7, handle ffff:, parent ffff:fff1, info
            0, 0, 0, 0,  7, 0, 0, 0,  0, 0, 0xff, 0xff,  0xf1, 0xff, 0xff, 0xff,  0, 0, 0, 0,
            // TCA_KIND "clsact"
            11, 0, 1, 0,  b'c', b'l', b's', b'a', b'c', b't', 0, 0,
            // TCA_INGRESS_BLOCK, TCA_EGRESS_BLOCK
            8, 0, 13, 0,  22, 0, 0, 0,
            8, 0, 14, 0,  23, 0, 0, 0,
        ];
        assert_eq!(bytes, expected);
    }
}
