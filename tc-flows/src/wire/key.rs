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

const TCA_FLOWER_KEY_ETH_TYPE: u16 = 8;
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
}

impl<'a> FoundKeys<'a> {
    pub(super) const fn none() -> FoundKeys<'a> {
        FoundKeys { by_number: [None; TCA_FLOWER_MAX as usize + 1] }
    }

    /// Notes an attribute; passes over one that no key has.
    pub(super) fn note(&mut self, attr: u16, value: &'a [u8]) {
        if let Some(slot) = self.by_number.get_mut(usize::from(attr)) {
            *slot = Some(value);
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
        let entries = self.mpls_entries()?;
        for id in KeyId::ALL {
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
                        if value.bytes().first() != mask.bytes().first()
                            || value.bytes().len() != mask.bytes().len()
                        {
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
        let in_pppoe = [KeyId::PppoeSid, KeyId::PppProto]
            .iter()
            .any(|key| self.get(key.spec().value).is_some());
        if !in_pppoe || VlanTpid::from_ethertype(protocol).is_none() {
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
