//! Flower keys as netlink attributes, and back.
//!
//! In goes a [`Match`], out come its `TCA_FLOWER_KEY_*` attributes; in come such attributes from a
//! kernel, out go the masked keys, unknown ones passed over. What each key is called and how long
//! it is stands in [`KeyId::spec`].
//!
//! Source: `enum { TCA_FLOWER_* }` in include/uapi/linux/pkt_cls.h.

use super::Writer;
use crate::ident::ETH_P_ALL;
use crate::key::{Fields, FieldsBuilder, Form, KeyId, Match, exact_mask};

const TCA_FLOWER_KEY_ETH_TYPE: u16 = 8;

impl Writer<'_> {
    /// The attributes of a match.
    pub(super) fn keys(&mut self, matching: &Match) {
        if matching.protocol() != ETH_P_ALL {
            self.attr(TCA_FLOWER_KEY_ETH_TYPE, &matching.protocol().to_be_bytes());
        }
        for field in matching.fields().iter() {
            let spec = field.id.spec();
            match (spec.form, field.value) {
                (Form::HostU16, &[high, low]) => {
                    let host = u16::from_be_bytes([high, low]);
                    self.attr(spec.value, &host.to_ne_bytes());
                }
                _ => self.attr(spec.value, field.value),
            }
            if spec.mask != 0 {
                self.attr(spec.mask, field.mask);
            }
        }
    }
}

/// The key that a flower attribute belongs to, and whether it is the key's mask.
pub(super) fn key_of(attr: u16) -> Option<(KeyId, bool)> {
    const ATTRS: usize = 128;
    static KEYS: [Option<(KeyId, bool)>; ATTRS] = {
        let mut keys = [None; ATTRS];
        let mut at = 0;
        while at < KeyId::ALL.len() {
            let id = KeyId::ALL[at];
            let spec = id.spec();
            keys[spec.value as usize] = Some((id, false));
            if spec.mask != 0 {
                keys[spec.mask as usize] = Some((id, true));
            }
            at += 1;
        }
        keys
    };
    KEYS.get(usize::from(attr)).copied().flatten()
}

/// The attributes of one key, as far as they were found.
pub(super) type ValueAndMask<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

/// The keys whose attributes were found.
pub(super) fn read_keys(keys: &[ValueAndMask<'_>; KeyId::ALL.len()]) -> Option<Fields> {
    let mut fields = FieldsBuilder::new();
    for (id, (value, mask)) in KeyId::ALL.into_iter().zip(keys) {
        let Some(value) = value else { continue };
        let len = id.spec().len;
        if value.len() != len || mask.is_some_and(|mask| mask.len() != len) {
            return None;
        }
        let exact = exact_mask(id);
        let mask = mask.unwrap_or(&exact[..len]);
        match (id.spec().form, *value) {
            (Form::HostU16, &[low, high]) => {
                let network = u16::from_ne_bytes([low, high]).to_be_bytes();
                fields.push(id, &network, mask);
            }
            _ => fields.push(id, value, mask),
        }
    }
    Some(fields.finish())
}
