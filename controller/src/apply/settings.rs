//! VF settings: what differs between what a VF has and what it should have.
//!
//! Pure. Only differences are written, because some drivers reset a running VF at every write.

use std::collections::BTreeMap;

use api::{
    resources::{VfLinkState, VfSettings},
    types::Bitrate,
};

use crate::{
    eswitch::{KernelRefusal, VfChange, VfRate, VfSetting, VfVlan},
    plan::legacy::VfProgram,
};

/// What the driver of an adapter has refused of a VF.
pub type Refused = BTreeMap<VfSetting, KernelRefusal>;

/// What must be written, or `None` where nothing differs. What a driver does not report is written
/// as well: whether it took it, its answer says.
pub fn change(has: Option<&VfSettings>, wanted: &VfProgram) -> Option<VfChange> {
    let vlan =
        VfVlan { vid: wanted.vlan, qos: wanted.vlan_priority.get(), proto: wanted.vlan_proto };
    let rate = rate(wanted.tx_max, wanted.tx_min);
    let change = VfChange {
        mac: (has.map(|has| has.mac) != Some(wanted.mac)).then_some(wanted.mac),
        vlan: has
            .is_none_or(|has| {
                has.vlan != wanted.vlan
                    || has.vlan_priority != wanted.vlan_priority
                    || (wanted.vlan != 0 && has.vlan_proto != wanted.vlan_proto)
            })
            .then_some(vlan),
        // No limit is what a driver without rates has anyway, and says.
        rate: (has.map_or(VfRate::default(), |has| self::rate(has.tx_max, has.tx_min)) != rate)
            .then_some(rate),
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

fn rate(max: Option<Bitrate>, min: Option<Bitrate>) -> VfRate {
    VfRate { max_mbit: max.map_or(0, Bitrate::mbit), min_mbit: min.map_or(0, Bitrate::mbit) }
}

/// What a VF should be set to where the driver has refused some of it: with its link disabled where
/// it would otherwise send as somebody else, or into another network.
pub fn guarded(wanted: &VfProgram, refused: &Refused) -> VfProgram {
    let unsafe_without = |setting: &VfSetting| match setting {
        VfSetting::Mac | VfSetting::Vlan => true,
        VfSetting::SpoofCheck => wanted.spoof_check,
        VfSetting::Rate | VfSetting::LinkState | VfSetting::Trust => false,
    };
    match refused.keys().any(unsafe_without) {
        true => VfProgram { link_state: VfLinkState::Disable, ..wanted.clone() },
        false => wanted.clone(),
    }
}

/// Takes out of `change` what the driver has refused already.
pub fn withhold<'a>(
    mut change: VfChange,
    refused: impl Iterator<Item = &'a VfSetting>,
) -> VfChange {
    for setting in refused {
        match setting {
            VfSetting::Mac => change.mac = None,
            VfSetting::Vlan => change.vlan = None,
            VfSetting::Rate => change.rate = None,
            VfSetting::SpoofCheck => change.spoof_check = None,
            VfSetting::LinkState => change.link_state = None,
            VfSetting::Trust => change.trust = None,
        }
    }
    change
}

/// What differs although the driver has accepted it, of what it reports at all.
pub fn ignored(has: &VfSettings, wanted: &VfProgram, refused: &Refused) -> Vec<VfSetting> {
    let silent = [
        has.spoof_check.is_none().then_some(VfSetting::SpoofCheck),
        has.link_state.is_none().then_some(VfSetting::LinkState),
        has.trust.is_none().then_some(VfSetting::Trust),
    ];
    let left_out = refused.keys().chain(silent.iter().flatten());
    change(Some(has), wanted)
        .map(|change| withhold(change, left_out).settings())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use api::{
        resources::VlanProto,
        types::{MacAddr, Priority},
    };

    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    fn wanted() -> VfProgram {
        VfProgram {
            port: None,
            mac: MAC,
            vlan: 100,
            vlan_proto: VlanProto::Dot1Q,
            vlan_priority: Priority::default(),
            tx_max: None,
            tx_min: None,
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
            vlan_priority: Priority::default(),
            tx_max: None,
            tx_min: None,
            spoof_check: Some(true),
            link_state: Some(VfLinkState::Auto),
            trust: Some(false),
        }
    }

    fn refused(settings: &[VfSetting]) -> Refused {
        let no = KernelRefusal { errno: 95, message: "no".into(), what: "set".into() };
        settings.iter().map(|setting| (*setting, no.clone())).collect()
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
    fn another_priority_is_another_vlan_setting() {
        let wanted = VfProgram { vlan_priority: Priority::try_from(5).unwrap(), ..wanted() };
        let expected = VfChange {
            vlan: Some(VfVlan { vid: 100, qos: 5, proto: VlanProto::Dot1Q }),
            ..VfChange::default()
        };
        assert_eq!(change(Some(&has()), &wanted), Some(expected));
    }

    #[test]
    fn rates_are_compared_in_mbit_and_no_rate_is_written_to_who_has_none() {
        let limited = VfProgram {
            tx_max: Some(Bitrate::try_from(9_500_000).unwrap()),
            tx_min: Bitrate::from_mbit(2),
            ..wanted()
        };
        let write = |max_mbit, min_mbit| {
            let rate = Some(VfRate { max_mbit, min_mbit });
            Some(VfChange { rate, ..VfChange::default() })
        };
        assert_eq!(change(Some(&has()), &limited), write(10, 2));
        let has_it =
            VfSettings { tx_max: Bitrate::from_mbit(10), tx_min: Bitrate::from_mbit(2), ..has() };
        assert_eq!(change(Some(&has_it), &limited), None);
        assert_eq!(change(Some(&has_it), &wanted()), write(0, 0), "taken back");
        assert_eq!(change(None, &wanted()).unwrap().rate, None);
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

    #[test]
    fn a_vf_whose_address_vlan_or_check_was_refused_has_no_link() {
        for setting in [VfSetting::Mac, VfSetting::Vlan, VfSetting::SpoofCheck] {
            let guarded = guarded(&wanted(), &refused(&[setting]));
            assert_eq!(guarded, VfProgram { link_state: VfLinkState::Disable, ..wanted() });
        }
        for setting in [VfSetting::Rate, VfSetting::Trust, VfSetting::LinkState] {
            assert_eq!(guarded(&wanted(), &refused(&[setting])), wanted());
        }
    }

    #[test]
    fn what_was_refused_is_not_written_again() {
        let all = change(None, &VfProgram { tx_max: Bitrate::from_mbit(1), ..wanted() }).unwrap();
        let settings = all.settings();
        for setting in &settings {
            let left = withhold(all.clone(), [setting].into_iter()).settings();
            assert_eq!(left.len(), settings.len() - 1);
            assert!(!left.contains(setting));
        }
    }

    #[test]
    fn what_a_driver_took_and_does_not_show_is_ignored_and_what_it_never_shows_is_not_held_against_it()
     {
        let ignoring = VfSettings { mac: MacAddr([0; 6]), spoof_check: None, ..has() };
        assert_eq!(ignored(&ignoring, &wanted(), &Refused::new()), [VfSetting::Mac]);
        assert_eq!(ignored(&ignoring, &wanted(), &refused(&[VfSetting::Mac])), []);
        assert_eq!(ignored(&has(), &wanted(), &Refused::new()), []);
    }
}
