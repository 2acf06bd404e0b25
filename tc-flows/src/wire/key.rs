//! Flower keys as netlink attributes, and back.
//!
//! In goes a [`Match`], out come its `TCA_FLOWER_KEY_*` attributes; in come such attributes from a
//! kernel, out go the masked keys, unknown ones passed over. What each key is called and how long
//! it is stands in [`KeyId::spec`]; here stands what is nested, and what the kernel shows otherwise
//! than it was given.
//!
//! Sources: `enum { TCA_FLOWER_* }` in include/uapi/linux/pkt_cls.h; `fl_set_key` and `fl_dump_key`
//! in net/sched/cls_flower.c.

use super::{Writer, attrs, find, u16_at, u32_at};
use crate::ident::{ETH_P_ALL, VlanTpid};
use crate::key::{
    ERSPAN, ETH_P_PPP_SES, Field, Fields, FieldsBuilder, Form, GENEVE, GTP, KEY_MAX, KeyId,
    LinkName, Match, OPTIONS_MAX, PFCP, VXLAN, exact_mask, geneve_options,
};

pub(super) const TCA_FLOWER_KEY_ETH_TYPE: u16 = 8;
const TCA_FLOWER_KEY_MPLS_TTL: u16 = 67;
const TCA_FLOWER_KEY_MPLS_BOS: u16 = 68;
const TCA_FLOWER_KEY_MPLS_TC: u16 = 69;
const TCA_FLOWER_KEY_MPLS_LABEL: u16 = 70;
const TCA_FLOWER_KEY_ENC_OPTS: u16 = 84;
const TCA_FLOWER_KEY_ENC_OPTS_MASK: u16 = 85;
const TCA_FLOWER_KEY_MPLS_OPTS: u16 = 99;
const TCA_FLOWER_KEY_CFM: u16 = 107;
/// The last attribute that this crate knows.
pub(super) const TCA_FLOWER_MAX: u16 = 111;

const TCA_FLOWER_KEY_MPLS_OPTS_LSE: u16 = 1;
const TCA_FLOWER_KEY_MPLS_OPT_LSE_DEPTH: u16 = 1;
const TCA_FLOWER_KEY_CFM_MD_LEVEL: u16 = 1;
const TCA_FLOWER_KEY_CFM_OPCODE: u16 = 2;

/// The parts of a label stack entry: attribute in a list of entries, attribute for itself, lowest
/// bit in the packet, bits.
const MPLS_PARTS: [(u16, u16, u32, u32); 4] = [
    (2, TCA_FLOWER_KEY_MPLS_TTL, 0, 0xff),
    (3, TCA_FLOWER_KEY_MPLS_BOS, 8, 1),
    (4, TCA_FLOWER_KEY_MPLS_TC, 9, 7),
    (5, TCA_FLOWER_KEY_MPLS_LABEL, 12, 0xf_ffff),
];

impl Writer<'_> {
    /// The attributes of a match.
    pub(super) fn keys(&mut self, matching: &Match) {
        if matching.protocol() != ETH_P_ALL {
            self.attr(TCA_FLOWER_KEY_ETH_TYPE, &matching.protocol().to_be_bytes());
        }
        let mut mpls = None;
        for field in matching.fields().iter() {
            let spec = field.id.spec();
            match spec.form {
                Form::Range => {
                    let (min, max) = field.value.split_at(2);
                    self.attr(spec.value, min);
                    self.attr(spec.value + 1, max);
                }
                Form::MplsEntry => {
                    if mpls.is_none() && self.mpls_alone(&field, matching.fields()) {
                        continue;
                    }
                    let nest = *mpls.get_or_insert_with(|| self.nest(TCA_FLOWER_KEY_MPLS_OPTS));
                    self.mpls_entry(&field);
                    self.end_nest(nest);
                }
                Form::Cfm => self.cfm(&field),
                Form::TunnelOptions => {
                    self.tunnel_options(TCA_FLOWER_KEY_ENC_OPTS, field.value);
                    self.tunnel_options(TCA_FLOWER_KEY_ENC_OPTS_MASK, field.mask);
                }
                Form::Name => {
                    let len = field.value.iter().position(|byte| *byte == 0);
                    self.attr_str(spec.value, &field.value[..len.unwrap_or(field.value.len())]);
                }
                form => {
                    self.number(form, spec.value, field.value);
                    if spec.mask != 0 {
                        self.number(form, spec.mask, field.mask);
                    }
                }
            }
        }
    }

    /// Bytes in network order, in the order that the attribute wants.
    fn number(&mut self, form: Form, attr: u16, bytes: &[u8]) {
        match (form, bytes) {
            (Form::HostU16 | Form::CtState, &[a, b]) => {
                self.attr(attr, &u16::from_be_bytes([a, b]).to_ne_bytes());
            }
            (Form::HostU32, &[a, b, c, d]) => {
                self.attr(attr, &u32::from_be_bytes([a, b, c, d]).to_ne_bytes());
            }
            _ => self.attr(attr, bytes),
        }
    }

    /// The outer label stack entry where it is the only one and has keys, as kernels before 5.7
    /// read it and all show it; false where it is not that.
    fn mpls_alone(&mut self, field: &Field<'_>, fields: &Fields) -> bool {
        let (entry, mask) = mpls_entry(field);
        let inner = KeyId::MplsLse2 as u8..=KeyId::MplsLse7 as u8;
        let alone = field.id == KeyId::MplsLse1
            && mask != 0
            && !fields.iter().any(|other| inner.contains(&(other.id as u8)));
        if alone {
            for (_, attr, shift, bits) in MPLS_PARTS {
                self.mpls_part(attr, entry >> shift & bits, mask >> shift & bits);
            }
        }
        alone
    }

    fn mpls_entry(&mut self, field: &Field<'_>) {
        let (entry, mask) = mpls_entry(field);
        let nest = self.nest(TCA_FLOWER_KEY_MPLS_OPTS_LSE);
        self.attr(TCA_FLOWER_KEY_MPLS_OPT_LSE_DEPTH, &field.value[..1]);
        for (attr, _, shift, bits) in MPLS_PARTS {
            self.mpls_part(attr, entry >> shift & bits, mask >> shift & bits);
        }
        self.end_nest(nest);
    }

    /// A label has 32 bits, the other parts 8.
    fn mpls_part(&mut self, attr: u16, value: u32, mask: u32) {
        match mask {
            0 => {}
            0xf_ffff => self.attr(attr, &value.to_ne_bytes()),
            _ => self.attr(attr, &[value as u8]),
        }
    }

    fn cfm(&mut self, field: &Field<'_>) {
        let nest = self.nest(TCA_FLOWER_KEY_CFM);
        for (at, attr) in
            [TCA_FLOWER_KEY_CFM_MD_LEVEL, TCA_FLOWER_KEY_CFM_OPCODE].iter().enumerate()
        {
            if field.mask[at] != 0 {
                self.attr(*attr, &field.value[at..=at]);
            }
        }
        self.end_nest(nest);
    }

    /// The nest of one side, value or mask: their parts are the same.
    fn tunnel_options(&mut self, attr: u16, bytes: &[u8]) {
        let Some((kind, bytes)) = bytes.split_first() else { return };
        let nest = self.nest(attr);
        let kind = u16::from(*kind);
        if kind == u16::from(GENEVE) {
            for option in geneve_options(bytes) {
                let option_nest = self.nest(kind);
                self.attr(1, &option[..2]);
                self.attr(2, &option[2..3]);
                self.attr(3, &option[4..]);
                self.end_nest(option_nest);
            }
        } else {
            let option_nest = self.nest(kind);
            match (kind as u8, bytes) {
                (VXLAN, &[a, b, c, d]) => {
                    self.attr(1, &u32::from_be_bytes([a, b, c, d]).to_ne_bytes());
                }
                (ERSPAN, [1, index @ ..]) => {
                    self.attr(1, &[1]);
                    self.attr(2, index);
                }
                (ERSPAN, &[2, direction, hwid]) => {
                    self.attr(1, &[2]);
                    self.attr(3, &[direction]);
                    self.attr(4, &[hwid]);
                }
                (GTP | PFCP, [first, rest @ ..]) => {
                    self.attr(1, &[*first]);
                    self.attr(2, rest);
                }
                _ => {}
            }
            self.end_nest(option_nest);
        }
        self.end_nest(nest);
    }
}

/// The bits of a label stack entry and their mask, as in the packet.
fn mpls_entry(field: &Field<'_>) -> (u32, u32) {
    let number =
        |bytes: &[u8]| bytes.iter().skip(1).fold(0u32, |sum, byte| sum << 8 | u32::from(*byte));
    (number(field.value), number(field.mask))
}

/// Attributes of a filter by their number, as far as they were found.
pub(super) struct FoundKeys<'a> {
    by_number: [Option<&'a [u8]>; TCA_FLOWER_MAX as usize + 1],
    /// A bit for each number that was found: most keys are not there, and need no look.
    found: u128,
}

/// The bits of the attributes without which a key is not there.
static NEEDED: [u128; KeyId::ALL.len()] = {
    let mut needed = [0; KeyId::ALL.len()];
    let mut at = 0;
    while at < KeyId::ALL.len() {
        let id = KeyId::ALL[at];
        needed[at] = match (id, id.spec().form) {
            (KeyId::MplsLse1, _) => MPLS_ATTRS,
            (KeyId::VlanEthType | KeyId::CvlanEthType, _) => PPPOE_ATTRS | 1 << id.spec().value,
            (_, Form::Range) => 0b11 << id.spec().value,
            _ => 1 << id.spec().value,
        };
        at += 1;
    }
    needed
};

const PPPOE_ATTRS: u128 = 1 << KeyId::PppoeSid.spec().value | 1 << KeyId::PppProto.spec().value;
const MPLS_ATTRS: u128 = 1 << TCA_FLOWER_KEY_MPLS_TTL
    | 1 << TCA_FLOWER_KEY_MPLS_BOS
    | 1 << TCA_FLOWER_KEY_MPLS_TC
    | 1 << TCA_FLOWER_KEY_MPLS_LABEL
    | 1 << TCA_FLOWER_KEY_MPLS_OPTS;

impl<'a> FoundKeys<'a> {
    pub(super) const fn none() -> FoundKeys<'a> {
        FoundKeys { by_number: [None; TCA_FLOWER_MAX as usize + 1], found: 0 }
    }

    /// Notes an attribute; passes over one that no key has.
    pub(super) fn note(&mut self, attr: u16, value: &'a [u8]) {
        if let Some(slot) = self.by_number.get_mut(usize::from(attr)) {
            *slot = Some(value);
            self.found |= 1 << attr;
        }
    }

    fn get(&self, attr: u16) -> Option<&'a [u8]> {
        self.by_number.get(usize::from(attr)).copied().flatten()
    }

    /// The keys of a rule of this protocol; nothing where an attribute is not as it should be, or
    /// nothing can be hidden.
    pub(super) fn fields(&self, protocol: u16, hidden: Hidden) -> Option<Fields> {
        let shown = self.shown(protocol)?;
        match hidden {
            Hidden::Nothing => Some(shown),
            Hidden::Pppoe => around_pppoe(protocol, &shown),
        }
    }

    fn shown(&self, protocol: u16) -> Option<Fields> {
        let mut fields = FieldsBuilder::new();
        let entries = if self.found & MPLS_ATTRS == 0 { [None; 7] } else { self.mpls_entries()? };
        for (id, needed) in KeyId::ALL.into_iter().zip(NEEDED) {
            if self.found & needed == 0 {
                continue;
            }
            let spec = id.spec();
            match spec.form {
                Form::MplsEntry => {
                    let depth = id as u8 - KeyId::MplsLse1 as u8 + 1;
                    if let Some((entry, mask)) = entries[usize::from(depth) - 1] {
                        let [a, b, c, d] = entry.to_be_bytes();
                        let [e, f, g, h] = mask.to_be_bytes();
                        fields.push(id, &[depth, a, b, c, d], &[u8::MAX, e, f, g, h]);
                    }
                }
                Form::Range => match (self.get(spec.value), self.get(spec.value + 1)) {
                    (Some(&[a, b]), Some(&[c, d])) => fields.push(id, &[a, b, c, d], &[u8::MAX; 4]),
                    (None, None) => {}
                    _ => return None,
                },
                Form::Cfm => {
                    if let Some(nest) = self.get(spec.value) {
                        let level = find(nest, TCA_FLOWER_KEY_CFM_MD_LEVEL);
                        let opcode = find(nest, TCA_FLOWER_KEY_CFM_OPCODE);
                        let value = [byte(level)?, byte(opcode)?];
                        let mask = [level.map_or(0, |_| 7), opcode.map_or(0, |_| u8::MAX)];
                        fields.push(id, &value, &mask);
                    }
                }
                Form::TunnelOptions => {
                    if let Some(value) = self.get(spec.value) {
                        let value = TunnelOptionsRead::new(value)?;
                        let mask = TunnelOptionsRead::new(self.get(spec.mask)?)?;
                        if !value.has_layout_of(&mask) {
                            return None;
                        }
                        fields.push(id, value.bytes(), mask.bytes());
                    }
                }
                Form::Name => {
                    if let Some(name) = self.get(spec.value) {
                        let name = LinkName::from_bytes(name)?;
                        fields.push(id, name.bytes(), &[u8::MAX; KEY_MAX]);
                    }
                }
                form => {
                    let shown = self.ethertype(id, protocol);
                    let shown = shown.as_ref().map(|bytes| &bytes[..]);
                    let Some(value) = shown.or_else(|| self.get(spec.value)) else { continue };
                    let value = in_network_order(form, value, spec.len)?;
                    let exact = exact_mask(id);
                    match (spec.mask != 0).then(|| self.get(spec.mask)).flatten() {
                        Some(mask) => {
                            let mask = in_network_order(form, mask, spec.len)?;
                            fields.push(id, &value[..spec.len], &mask[..spec.len]);
                        }
                        None => fields.push(id, &value[..spec.len], &exact[..spec.len]),
                    }
                }
            }
        }
        Some(fields.finish())
    }

    /// The ethertype behind a tag where the kernel does not show it as it was given: around PPPoE
    /// it shows none, or that of what PPP carries (`fl_set_key_pppoe` writes into the one place
    /// that `fl_dump_key` reads).
    fn ethertype(&self, id: KeyId, protocol: u16) -> Option<[u8; 2]> {
        if self.found & PPPOE_ATTRS == 0 || VlanTpid::from_ethertype(protocol).is_none() {
            return None;
        }
        let next = self.get(KeyId::VlanEthType.spec().value).and_then(u16_be);
        let second = next.and_then(VlanTpid::from_ethertype).is_some();
        match id {
            KeyId::VlanEthType if !second => Some(ETH_P_PPP_SES.to_be_bytes()),
            KeyId::CvlanEthType if second => Some(ETH_P_PPP_SES.to_be_bytes()),
            _ => None,
        }
    }

    /// Value and mask of the entry at each depth.
    fn mpls_entries(&self) -> Option<[Option<(u32, u32)>; 7]> {
        let mut entries = [None; 7];
        for (_, attr, shift, bits) in MPLS_PARTS {
            if let Some(part) = self.get(attr) {
                let (entry, mask) = entries[0].get_or_insert((0, 0));
                *entry |= mpls_part(part, bits)? << shift;
                *mask |= bits << shift;
            }
        }
        for (_, entry) in attrs(self.get(TCA_FLOWER_KEY_MPLS_OPTS).unwrap_or_default()) {
            let depth = byte(find(entry, TCA_FLOWER_KEY_MPLS_OPT_LSE_DEPTH))?;
            let slot = entries.get_mut(usize::from(depth.checked_sub(1)?))?;
            let (value, mask) = slot.get_or_insert((0, 0));
            for (attr, _, shift, bits) in MPLS_PARTS {
                if let Some(part) = find(entry, attr) {
                    *value |= mpls_part(part, bits)? << shift;
                    *mask |= bits << shift;
                }
            }
        }
        Some(entries)
    }
}

/// What the kernel may have been given and does not show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hidden {
    Nothing,
    /// That the tags hold PPPoE, where no key of it was named: then the kernel shows nothing of its
    /// ethertype (see [`FoundKeys::ethertype`]). Only the cookie tells that it was there.
    Pppoe,
}

fn around_pppoe(protocol: u16, fields: &Fields) -> Option<Fields> {
    VlanTpid::from_ethertype(protocol)?;
    let ethertype = |id| fields.get(id).and_then(|field| u16_be(field.value));
    let hidden = match (ethertype(KeyId::VlanEthType), ethertype(KeyId::CvlanEthType)) {
        (None, None) => KeyId::VlanEthType,
        (Some(inner), None) if VlanTpid::from_ethertype(inner).is_some() => KeyId::CvlanEthType,
        _ => return None,
    };
    Some(fields.with(hidden, &ETH_P_PPP_SES.to_be_bytes(), &[u8::MAX; 2]))
}

fn u16_be(bytes: &[u8]) -> Option<u16> {
    bytes.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

/// A byte, 0 where the attribute is absent; nothing where it has another length.
fn byte(attr: Option<&[u8]>) -> Option<u8> {
    match attr {
        None => Some(0),
        Some(&[byte]) => Some(byte),
        Some(_) => None,
    }
}

/// A label has 32 bits, the other parts 8.
fn mpls_part(part: &[u8], bits: u32) -> Option<u32> {
    let number = if bits == 0xf_ffff { u32_at(part, 0)? } else { byte(Some(part))?.into() };
    Some(number & bits)
}

/// A value of this length as it stands in [`Fields`].
fn in_network_order(form: Form, bytes: &[u8], len: usize) -> Option<[u8; KEY_MAX]> {
    if bytes.len() != len {
        return None;
    }
    let mut out = [0; KEY_MAX];
    match form {
        Form::HostU16 | Form::CtState => {
            out[..2].copy_from_slice(&u16_at(bytes, 0)?.to_be_bytes());
        }
        Form::HostU32 => out[..4].copy_from_slice(&u32_at(bytes, 0)?.to_be_bytes()),
        _ => out.get_mut(..len)?.copy_from_slice(bytes),
    }
    Some(out)
}

/// One side of the tunnel options, value or mask, as it stands in [`Fields`].
struct TunnelOptionsRead {
    bytes: [u8; OPTIONS_MAX],
    len: usize,
}

impl TunnelOptionsRead {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Whether both hold the same kind of options, each as long as the other's.
    fn has_layout_of(&self, other: &TunnelOptionsRead) -> bool {
        match (self.bytes(), other.bytes()) {
            ([GENEVE, ours @ ..], [GENEVE, theirs @ ..]) => {
                let lengths = |bytes| geneve_options(bytes).map(<[u8]>::len);
                !ours.is_empty() && lengths(ours).eq(lengths(theirs))
            }
            ([ERSPAN, ours, ..], [ERSPAN, theirs, ..]) => ours == theirs,
            ([ours, _, ..], [theirs, _, ..]) => ours == theirs && self.len == other.len,
            _ => false,
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Option<()> {
        let end = self.len + bytes.len();
        self.bytes.get_mut(self.len..end)?.copy_from_slice(bytes);
        self.len = end;
        Some(())
    }

    /// Options of one kind. Geneve's may stand in a nest each, or one behind the other in the same
    /// (`fl_dump_key_geneve_opt`).
    fn new(region: &[u8]) -> Option<TunnelOptionsRead> {
        let mut out = TunnelOptionsRead { bytes: [0; OPTIONS_MAX], len: 0 };
        for (kind, option) in attrs(region) {
            let kind = u8::try_from(kind).ok()?;
            match out.bytes().first() {
                None => out.push(&[kind])?,
                Some(first) if *first == kind && kind == GENEVE => {}
                Some(_) => return None,
            }
            match kind {
                GENEVE => out.geneve(option)?,
                VXLAN => out.push(&u32_at(find(option, 1)?, 0)?.to_be_bytes())?,
                ERSPAN => match byte(Some(find(option, 1)?))? {
                    1 => {
                        out.push(&[1])?;
                        out.push(find(option, 2)?.first_chunk::<4>()?)?;
                    }
                    2 => out.push(&[
                        2,
                        byte(Some(find(option, 3)?))?,
                        byte(Some(find(option, 4)?))?,
                    ])?,
                    _ => return None,
                },
                GTP => out.push(&[byte(Some(find(option, 1)?))?, byte(Some(find(option, 2)?))?])?,
                PFCP => {
                    out.push(&[byte(Some(find(option, 1)?))?])?;
                    out.push(find(option, 2)?.first_chunk::<8>()?)?;
                }
                _ => return None,
            }
        }
        Some(out)
    }

    fn geneve(&mut self, nest: &[u8]) -> Option<()> {
        let mut parts = attrs(nest);
        while let Some(class) = parts.next() {
            let ((1, class), (2, kind), (3, data)) = (class, parts.next()?, parts.next()?) else {
                return None;
            };
            let words = data.len() / 4;
            if class.len() != 2 || words * 4 != data.len() || !(1..=31).contains(&words) {
                return None;
            }
            self.push(class)?;
            self.push(&[byte(Some(kind))?, words as u8])?;
            self.push(data)?;
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use netlink_bindings::tc::{FlowerAttrs, FlowerKeyMplsOptAttrs};
    use netlink_packet_core::{Emitable, Nla, NlaBuffer, Parseable};
    use netlink_packet_route::tc::TcFilterFlowerOption;
    use proptest::prelude::*;

    use super::super::{Ask, Detail, Filter, Messages};
    use super::*;
    use crate::action::Action;
    use crate::arbitrary::{chain, hook, matches, prio};
    use crate::diff::Op;
    use crate::ident::Handle;
    use crate::key::{
        CfmLevel, CfmMatch, GeneveOption, LinkName, MplsDepth, MplsEntry, MplsLabel, MplsMatch,
        PppoeMatch, TagMatch, Tunnel, TunnelOptions,
    };
    use crate::rule::{Owner, Rule};

    const Q: VlanTpid = VlanTpid::Dot1Q;
    const AD: VlanTpid = VlanTpid::Dot1Ad;

    fn written(matching: &Match) -> Vec<u8> {
        let mut bytes = Vec::new();
        Writer::new(&mut bytes).keys(matching);
        bytes
    }

    fn read(protocol: u16, bytes: &[u8], hidden: Hidden) -> Option<Match> {
        let mut found = FoundKeys::none();
        attrs(bytes).for_each(|(attr, value)| found.note(attr, value));
        Some(Match::from_parts(protocol, found.fields(protocol, hidden)?))
    }

    /// The attributes one by one, header and padding and all.
    fn pieces(mut bytes: &[u8]) -> Vec<&[u8]> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let len = usize::from(u16_at(bytes, 0).unwrap()).next_multiple_of(4);
            let (piece, rest) = bytes.split_at(len);
            out.push(piece);
            bytes = rest;
        }
        out
    }

    #[test]
    fn the_table_has_every_attribute_of_pkt_cls_h_that_is_a_key_once() {
        let mut seen = BTreeSet::new();
        for id in KeyId::ALL {
            let spec = id.spec();
            let more = if id.is_range() { spec.value + 1 } else { 0 };
            for attr in [spec.value, spec.mask, more] {
                let first_of_stack = id == KeyId::MplsLse1 || spec.form != Form::MplsEntry;
                assert!(attr == 0 || seen.insert(attr) == first_of_stack, "{id:?} {attr}");
            }
        }
        seen.extend([TCA_FLOWER_KEY_ETH_TYPE]);
        seen.extend(MPLS_PARTS.map(|(_, attr, ..)| attr));
        // CLASSID, ACT, FLAGS and IN_HW_COUNT are no keys.
        let all: BTreeSet<u16> =
            (1..=TCA_FLOWER_MAX).filter(|attr| ![1, 3, 22, 86].contains(attr)).collect();
        assert_eq!(seen, all);
    }

    #[test]
    fn a_label_stack_is_plain_attributes_where_its_outer_entry_is_all_and_else_a_list() {
        let at = |depth| MplsDepth::new(depth).unwrap();
        let label = |number| MplsEntry::any().label(MplsLabel::new(number).unwrap());
        let one = Match::ethertype(MplsMatch::unicast().entry(at(1), label(5).bos(true)));
        let bytes = written(&one);
        let numbers: Vec<u16> = attrs(&bytes).map(|(attr, _)| attr).collect();
        assert_eq!(numbers, [8, TCA_FLOWER_KEY_MPLS_BOS, TCA_FLOWER_KEY_MPLS_LABEL]);
        assert_eq!(find(&bytes, TCA_FLOWER_KEY_MPLS_LABEL), Some(&5u32.to_ne_bytes()[..]));

        let two = MplsMatch::unicast().entry(at(3), label(6).ttl(9)).entry(at(1), label(5));
        let bytes = written(&Match::ethertype(two));
        let list = find(&bytes, TCA_FLOWER_KEY_MPLS_OPTS).unwrap();
        let entries: Vec<(u16, Vec<u16>)> = attrs(list)
            .map(|(kind, entry)| (kind, attrs(entry).map(|(attr, _)| attr).collect()))
            .collect();
        assert_eq!(entries, [(1, vec![1, 5]), (1, vec![1, 2, 5])]);

        // That there is an entry is a key too.
        let any = written(&Match::ethertype(MplsMatch::unicast().entry(at(1), MplsEntry::any())));
        assert!(find(&any, TCA_FLOWER_KEY_MPLS_OPTS).is_some());
        assert_ne!(any, written(&Match::ethertype(MplsMatch::unicast())));
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn geneve_options_are_these_bytes() {
        let option = GeneveOption::masked((0x0102, 0xffff), (3, 0xff), &[9; 4], &[0xff, 0, 0, 0]);
        let options = TunnelOptions::geneve(&[option.unwrap()]).unwrap();
        #[rustfmt::skip]
        let expected: &[u8] = &[
            32, 0, 84, 0x80,
            28, 0, 1, 0x80,
            6, 0, 1, 0, 1, 2, 0, 0,
            5, 0, 2, 0, 3, 0, 0, 0,
            8, 0, 3, 0, 9, 9, 9, 9,
        ];
        let mut expected_mask = expected.to_vec();
        expected_mask[2] = 85;
        expected_mask[12..14].fill(0xff);
        expected_mask[20] = 0xff;
        expected_mask[28..32].copy_from_slice(&[0xff, 0, 0, 0]);
        let matching = Match::any().tunnel(&Tunnel::any().options(&options));
        // Under the mask two bytes of the class, the type and one byte of data count.
        let masked = [expected, &expected_mask].concat();
        let mut written = written(&matching);
        assert_eq!(written[28..32], [9, 0, 0, 0]);
        written[29..32].fill(9);
        assert_eq!(written, masked);
    }

    #[test]
    fn geneve_options_in_one_nest_as_the_kernel_shows_them_are_the_same_options() {
        let option = |first: u8| GeneveOption::new(1, 2, &[first, 3, 4, 5]).unwrap();
        let options = TunnelOptions::geneve(&[option(7), option(8)]).unwrap();
        let matching = Match::any().tunnel(&Tunnel::any().options(&options));
        let given = written(&matching);
        let mut shown = Vec::new();
        let mut writer = Writer::new(&mut shown);
        for attr in [TCA_FLOWER_KEY_ENC_OPTS, TCA_FLOWER_KEY_ENC_OPTS_MASK] {
            let outer = writer.nest(attr);
            let inner = writer.nest(GENEVE.into());
            for (_, option) in attrs(find(&given, attr).unwrap()) {
                writer.put(option);
            }
            writer.end_nest(inner);
            writer.end_nest(outer);
        }
        assert_ne!(shown, given);
        assert_eq!(read(ETH_P_ALL, &shown, Hidden::Nothing), Some(matching));
    }

    /// `fl_dump_key` in net/sched/cls_flower.c of Linux 7.3, as far as it is not plain.
    #[test]
    fn behind_tags_pppoe_is_read_whatever_the_kernel_shows_of_its_ethertype() {
        let session = PppoeMatch::any().session(7);
        let one = TagMatch::any(Q);
        let two = TagMatch::any(AD);
        let hide = |matching: &Match, gone: KeyId| {
            let bytes = written(matching);
            let kept = pieces(&bytes)
                .into_iter()
                .filter(|piece| u16_at(piece, 2) != Some(gone.spec().value));
            kept.collect::<Vec<_>>().concat()
        };
        for (matching, gone) in [
            (Match::in_tag_with(one, session.clone()), KeyId::VlanEthType),
            (Match::in_tags_with(two, one, session), KeyId::CvlanEthType),
        ] {
            let shown = hide(&matching, gone);
            assert_eq!(read(matching.protocol(), &shown, Hidden::Nothing), Some(matching));
        }
        let bare = crate::ident::EtherType::new(ETH_P_PPP_SES).unwrap();
        for (matching, gone, seen) in [
            (Match::in_tag_with(one, bare), KeyId::VlanEthType, Match::in_tag(one)),
            (Match::in_tags_with(two, one, bare), KeyId::CvlanEthType, Match::in_tags(two, one)),
        ] {
            let shown = hide(&matching, gone);
            assert_eq!(read(matching.protocol(), &shown, Hidden::Nothing), Some(seen));
            assert_eq!(read(matching.protocol(), &shown, Hidden::Pppoe), Some(matching));
        }
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn an_own_rule_with_a_key_that_this_crate_does_not_know_is_unreadable() {
        let owner = Owner(*b"test");
        let matching = Match::any().hash(1, u32::MAX);
        let rule = Rule::new(hook(), chain(0), prio(1), matching, [Action::Drop]).unwrap();
        let mut bytes = Vec::new();
        let ask = Ask { ack: false, told: false };
        let add = Op::Add { rule: rule.clone(), handle: Handle(1) };
        Writer::new(&mut bytes).op(&add, owner, 5, ask);
        let own = |bytes: &[u8]| {
            let message = Messages::new(bytes).next().unwrap();
            matches!(message.filter(owner, hook(), Detail::Full), Some(Filter::Own(_)))
        };
        assert!(own(&bytes));
        // The same message from a build to which this attribute is a key as well.
        let header = [8, 0, KeyId::Hash.spec().value as u8, 0];
        let at = bytes.windows(4).position(|window| window == header).unwrap();
        bytes[at + 2] = TCA_FLOWER_MAX as u8 + 1;
        bytes[at + 10] = TCA_FLOWER_MAX as u8 + 2;
        assert!(!own(&bytes));
    }

    #[test]
    fn attributes_of_a_wrong_length_or_number_are_no_keys() {
        let bad = |attr: u16, value: &[u8]| {
            let mut bytes = Vec::new();
            Writer::new(&mut bytes).attr(attr, value);
            read(ETH_P_ALL, &bytes, Hidden::Nothing)
        };
        assert_eq!(bad(KeyId::EthDst.spec().value, &[1; 5]), None);
        assert_eq!(bad(KeyId::PortDstRange.spec().value, &[0, 1]), None);
        assert_eq!(bad(TCA_FLOWER_KEY_MPLS_TTL, &[1, 2]), None);
        assert_eq!(bad(KeyId::EncOpts.spec().value, &[]), None);
        assert_eq!(bad(KeyId::Indev.spec().value, b"a/b"), None);
        assert_eq!(bad(TCA_FLOWER_MAX + 1, &[1]), Some(Match::any()));
        let link = Match::any().indev(LinkName::new("eth0").unwrap());
        assert_eq!(bad(KeyId::Indev.spec().value, b"eth0\0"), Some(link));
    }

    /// What the crates call a key of this crate.
    fn crate_names(id: KeyId) -> (String, String) {
        let ours = format!("{id:?}");
        let route = match id {
            KeyId::Indev => "InDev".to_owned(),
            KeyId::IpFlags => "KeyFlags".to_owned(),
            KeyId::Hash => "KeyHash".to_owned(),
            KeyId::EncKey => "EncKeyId".to_owned(),
            KeyId::EncTos => "EncKeyIpTos".to_owned(),
            KeyId::EncTtl => "EncKeyIpTtl".to_owned(),
            KeyId::EncUdpSrc => "EncKeyUdpSrcPort".to_owned(),
            KeyId::EncUdpDst => "EncKeyUdpDstPort".to_owned(),
            _ => ours.replace("EncIpv", "EncKeyIpv"),
        };
        let bindings = match id {
            KeyId::Indev | KeyId::L2Miss => ours,
            KeyId::IpFlags => "KeyFlags".to_owned(),
            KeyId::EncKey => "KeyEncKeyId".to_owned(),
            KeyId::EncTos => "KeyEncIpTos".to_owned(),
            KeyId::EncTtl => "KeyEncIpTtl".to_owned(),
            KeyId::EncUdpSrc => "KeyEncUdpSrcPort".to_owned(),
            KeyId::EncUdpDst => "KeyEncUdpDstPort".to_owned(),
            _ => format!("Key{ours}"),
        };
        (route, bindings)
    }

    /// The value of a key as a number, where it is one for everybody.
    fn as_number(form: Form, bytes: &[u8]) -> Option<u32> {
        let plain = matches!(
            form,
            Form::HostU16
                | Form::HostU32
                | Form::EtherType
                | Form::PppProto
                | Form::Number
                | Form::Hex
                | Form::Ttl
                | Form::IpProto
                | Form::IpFlags
                | Form::TunnelFlags
                | Form::CtState
        );
        plain.then(|| bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
    }

    #[test]
    fn the_kernels_specs_have_the_same_attributes_under_the_same_names() {
        let mut other_order = BTreeSet::new();
        for id in KeyId::ALL {
            let spec = id.spec();
            let (_, name) = crate_names(id);
            let mut value = [0; KEY_MAX];
            value[..spec.len].iter_mut().zip(1..).for_each(|(byte, at)| *byte = at);
            let mut check = |attr: u16, name: String| {
                let mut bytes = Vec::new();
                Writer::new(&mut bytes).number(spec.form, attr, &value[..spec.len]);
                let read = format!("{:?}", FlowerAttrs::new(&bytes));
                assert!(read.contains(&format!("{{ {name}: ")), "{read} is not {name}");
                let number = as_number(spec.form, &value[..spec.len]);
                if number.is_some_and(|number| !read.contains(&format!("{{ {name}: {number} }}"))) {
                    other_order.insert(name);
                }
            };
            match spec.form {
                Form::Range => {
                    let mut bytes = Vec::new();
                    Writer::new(&mut bytes).attr(spec.value, &[1, 2]);
                    Writer::new(&mut bytes).attr(spec.value + 1, &[3, 4]);
                    let side = name.replace("Range", "");
                    let expected = format!("{{ {side}Min: 258, {side}Max: 772 }}");
                    let read = format!("{:?}", FlowerAttrs::new(&bytes));
                    assert!(read.contains(&expected), "{read} is not {expected}");
                }
                Form::MplsEntry | Form::Cfm | Form::TunnelOptions | Form::Name => {}
                Form::IpFlags | Form::TunnelFlags => {
                    let mut bytes = Vec::new();
                    Writer::new(&mut bytes).attr(spec.value, &[0, 0, 0, 5]);
                    Writer::new(&mut bytes).attr(spec.mask, &[0, 0, 0, 7]);
                    let read = FlowerAttrs::new(&bytes);
                    let flags = if spec.form == Form::IpFlags {
                        (read.get_key_flags().ok(), read.get_key_flags_mask().ok())
                    } else {
                        (read.get_key_enc_flags().ok(), read.get_key_enc_flags_mask().ok())
                    };
                    assert_eq!(flags, (Some(5), Some(7)));
                }
                _ => {
                    check(spec.value, name.clone());
                    if spec.mask != 0 {
                        check(spec.mask, format!("{name}Mask"));
                    }
                }
            }
        }
        // Documentation/netlink/specs/tc.yaml follows the comments of pkt_cls.h in these; the
        // kernel reads host order (`fl_set_key_vlan`), and so does tc write.
        let expected = ["KeyCvlanId", "KeyVlanId"].map(str::to_owned);
        assert_eq!(other_order, BTreeSet::from(expected));
    }

    #[test]
    fn the_kernels_specs_read_what_is_nested() {
        let at = |depth| MplsDepth::new(depth).unwrap();
        let entry = MplsEntry::any().label(MplsLabel::new(5).unwrap()).ttl(9);
        let mpls = written(&Match::ethertype(MplsMatch::unicast().entry(at(2), entry)));
        // The specs leave out that each entry is a nest of its own.
        let entry = find(find(&mpls, TCA_FLOWER_KEY_MPLS_OPTS).unwrap(), 1).unwrap();
        let read = format!("{:?}", FlowerKeyMplsOptAttrs::new(entry));
        for part in ["LseDepth: 2", "LseTtl: 9", "LseLabel: 5"] {
            assert!(read.contains(part), "{part} in {read}");
        }
        let level = CfmLevel::new(3).unwrap();
        let cfm = written(&Match::ethertype(CfmMatch::any().level(level).opcode(4)));
        let read = format!("{:?}", FlowerAttrs::new(&cfm));
        for part in ["KeyCfm", "MdLevel: 3", "Opcode: 4"] {
            assert!(read.contains(part), "{part} in {read}");
        }
        // Class and index read alike in either byte order: the specs do not say that they are in
        // network order.
        let geneve = GeneveOption::new(0x0101, 3, &[4; 4]).unwrap();
        for (options, parts) in [
            (TunnelOptions::geneve(&[geneve]).unwrap(), vec!["Class: 257", "Type: 3"]),
            (TunnelOptions::vxlan_gbp(7, u32::MAX), vec!["Gbp: 7"]),
            (TunnelOptions::erspan_v1(0x0101_0101, u32::MAX), vec!["Ver: 1", "Index: 16843009"]),
            (TunnelOptions::erspan_v2((1, 1), (5, 63)), vec!["Ver: 2", "Dir: 1", "Hwid: 5"]),
            (TunnelOptions::gtp((1, 255), (9, 255)), vec!["PduType: 1", "Qfi: 9"]),
            // The specs have no PFCP.
        ] {
            let bytes = written(&Match::any().tunnel(&Tunnel::any().options(&options)));
            let read = format!("{:?}", FlowerAttrs::new(&bytes));
            for part in parts {
                assert!(read.contains(part), "{part} in {read}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        #[test]
        fn netlink_packet_route_reads_and_writes_what_this_crate_writes(matching in matches()) {
            let bytes = written(&matching);
            for piece in pieces(&bytes) {
                let option = TcFilterFlowerOption::parse(&NlaBuffer::new(piece)).unwrap();
                let typed = !matches!(option, TcFilterFlowerOption::Other(_));
                let attr = u16_at(piece, 2).unwrap() & 0x3fff;
                // It ends at KEY_HASH_MASK, and leaves tunnel options out.
                let known = attr <= 101
                    && ![TCA_FLOWER_KEY_ENC_OPTS, TCA_FLOWER_KEY_ENC_OPTS_MASK].contains(&attr);
                prop_assert_eq!(typed, known, "{}", attr);
                prop_assert_eq!(option.kind() & 0x3fff, attr);
                let mut again = vec![0; option.buffer_len()];
                option.emit(&mut again);
                // It leaves out the flag that marks nests, or sets it where this crate does not.
                prop_assert_eq!(&again[4..], &piece[4..], "{:?}", option);
            }
            for field in matching.fields().iter() {
                let (name, _) = crate_names(field.id);
                let spec = field.id.spec();
                let Some(number) = as_number(spec.form, field.value) else { continue };
                if spec.value > 101 {
                    continue;
                }
                let piece = pieces(&bytes)
                    .into_iter()
                    .find(|piece| u16_at(piece, 2) == Some(spec.value))
                    .unwrap();
                let option = TcFilterFlowerOption::parse(&NlaBuffer::new(piece)).unwrap();
                prop_assert_eq!(format!("{option:?}"), format!("{name}({number})"));
            }
        }
    }
}
