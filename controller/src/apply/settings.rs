//! VF settings: what differs between what a VF has and what it should have.
//!
//! Pure. Only differences are written, because some drivers reset a running VF at every write.

use api::resources::VfSettings;

use crate::{
    eswitch::{VfChange, VfVlan},
    plan::legacy::VfProgram,
};

/// What must be written, or `None` where nothing differs. What a driver does not report is written
/// as well: whether it took it, its answer says.
pub fn change(has: Option<&VfSettings>, wanted: &VfProgram) -> Option<VfChange> {
    let vlan = VfVlan { vid: wanted.vlan, qos: 0, proto: wanted.vlan_proto };
    let change = VfChange {
        mac: (has.map(|has| has.mac) != Some(wanted.mac)).then_some(wanted.mac),
        vlan: has
            .is_none_or(|has| {
                has.vlan != wanted.vlan || (wanted.vlan != 0 && has.vlan_proto != wanted.vlan_proto)
            })
            .then_some(vlan),
        spoof_check: (has.and_then(|has| has.spoof_check) != Some(wanted.spoof_check))
            .then_some(wanted.spoof_check),
        link_state: (has.and_then(|has| has.link_state) != Some(wanted.link_state))
            .then_some(wanted.link_state),
        // Off is what a driver without it has anyway.
        trust: (has.and_then(|has| has.trust).unwrap_or(false) != wanted.trust)
            .then_some(wanted.trust),
    };
    (change != VfChange::default()).then_some(change)
}

#[cfg(test)]
mod tests {
    use api::{
        resources::{VfLinkState, VlanProto},
        types::MacAddr,
    };

    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn wanted() -> VfProgram {
        VfProgram {
            port: None,
            mac: MAC,
            vlan: 100,
            vlan_proto: VlanProto::Dot1Q,
            spoof_check: true,
            link_state: VfLinkState::Auto,
            trust: false,
        }
    }

    fn has() -> VfSettings {
        VfSettings {
            mac: MAC,
            vlan: 100,
            vlan_proto: VlanProto::Dot1Q,
            spoof_check: Some(true),
            link_state: Some(VfLinkState::Auto),
            trust: Some(false),
        }
    }

    #[test]
    fn nothing_is_written_where_nothing_differs() {
        assert_eq!(change(Some(&has()), &wanted()), None);
    }

    #[test]
    fn only_what_differs_is_written() {
        let has = VfSettings { vlan: 7, ..has() };
        let expected = VfChange {
            vlan: Some(VfVlan { vid: 100, qos: 0, proto: VlanProto::Dot1Q }),
            ..VfChange::default()
        };
        assert_eq!(change(Some(&has), &wanted()), Some(expected));
    }

    #[test]
    fn what_the_driver_does_not_report_is_written() {
        let has = VfSettings { link_state: None, ..has() };
        let expected = VfChange { link_state: Some(VfLinkState::Auto), ..VfChange::default() };
        assert_eq!(change(Some(&has), &wanted()), Some(expected));
    }

    #[test]
    fn trust_is_written_where_it_is_wanted_and_taken_back_where_it_is_reported() {
        let trusted = VfProgram { trust: true, ..wanted() };
        let write = |trust| Some(VfChange { trust: Some(trust), ..VfChange::default() });
        for silent in [None, Some(false)] {
            let has = VfSettings { trust: silent, ..has() };
            assert_eq!(change(Some(&has), &trusted), write(true));
            assert_eq!(change(Some(&has), &wanted()), None);
        }
        let has = VfSettings { trust: Some(true), ..has() };
        assert_eq!(change(Some(&has), &trusted), None);
        assert_eq!(change(Some(&has), &wanted()), write(false));
    }
}
