//! Actions as netlink attributes, and back.
//!
//! In goes one [`Action`], out comes the content of its place in `TCA_FLOWER_ACT`; in comes such
//! content from a kernel, out goes the action, or nothing where this crate has no counterpart.
//!
//! Sources: `TCA_ACT_*`, `TC_ACT_*` and `tc_gen` in include/uapi/linux/pkt_cls.h; tc_act/tc_gact.h,
//! tc_mirred.h and tc_vlan.h beside it.

use super::{Writer, find, u16_at, u32_at};
use crate::ident::{ChainId, Ifindex, VlanId, VlanTpid};
use crate::rule::Action;

const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
pub(super) const TCA_ACT_COOKIE: u16 = 6;

/// `TCA_GACT_PARMS`, `TCA_MIRRED_PARMS` and `TCA_VLAN_PARMS` are one number.
const PARMS: u16 = 2;
const TCA_VLAN_PUSH_VLAN_ID: u16 = 3;
const TCA_VLAN_PUSH_VLAN_PROTOCOL: u16 = 4;
const TCA_VLAN_PUSH_VLAN_PRIORITY: u16 = 6;

/// `tc_gen`: index, capab, action, refcnt, bindcnt.
const TC_GEN: usize = 20;

const TC_ACT_OK: u32 = 0;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_PIPE: u32 = 3;
const TC_ACT_STOLEN: u32 = 4;
const TC_ACT_TRAP: u32 = 8;
const TC_ACT_GOTO_CHAIN: u32 = 2 << 28;
const TC_ACT_EXT_VAL_MASK: u32 = (1 << 28) - 1;

const TCA_EGRESS_REDIR: u32 = 1;
const TCA_EGRESS_MIRROR: u32 = 2;
const TCA_VLAN_ACT_POP: u32 = 1;
const TCA_VLAN_ACT_PUSH: u32 = 2;
const TCA_VLAN_ACT_MODIFY: u32 = 3;

impl Writer<'_> {
    /// What stands in an action's place, its cookie aside.
    pub(super) fn action(&mut self, action: Action) {
        match action {
            Action::Drop => self.gact(TC_ACT_SHOT),
            Action::Pass => self.gact(TC_ACT_OK),
            Action::Trap => self.gact(TC_ACT_TRAP),
            Action::Goto(chain) => self.gact(TC_ACT_GOTO_CHAIN | chain.get()),
            Action::Mirror(to) => self.mirred(TC_ACT_PIPE, TCA_EGRESS_MIRROR, to),
            Action::Redirect(to) => self.mirred(TC_ACT_STOLEN, TCA_EGRESS_REDIR, to),
            Action::VlanPush { tpid, vid } => self.vlan(TCA_VLAN_ACT_PUSH, Some((tpid, vid))),
            Action::VlanPop => self.vlan(TCA_VLAN_ACT_POP, None),
            Action::VlanModify { tpid, vid } => self.vlan(TCA_VLAN_ACT_MODIFY, Some((tpid, vid))),
        }
    }

    fn gact(&mut self, control: u32) {
        self.attr_str(TCA_ACT_KIND, b"gact");
        let options = self.nest(TCA_ACT_OPTIONS);
        self.attr(PARMS, &tc_gen(control));
        self.end_nest(options);
    }

    fn mirred(&mut self, control: u32, eaction: u32, to: Ifindex) {
        self.attr_str(TCA_ACT_KIND, b"mirred");
        let options = self.nest(TCA_ACT_OPTIONS);
        let mut parms = [0; TC_GEN + 8];
        parms[..TC_GEN].copy_from_slice(&tc_gen(control));
        parms[TC_GEN..TC_GEN + 4].copy_from_slice(&eaction.to_ne_bytes());
        parms[TC_GEN + 4..].copy_from_slice(&to.get().to_ne_bytes());
        self.attr(PARMS, &parms);
        self.end_nest(options);
    }

    fn vlan(&mut self, v_action: u32, tag: Option<(VlanTpid, VlanId)>) {
        self.attr_str(TCA_ACT_KIND, b"vlan");
        let options = self.nest(TCA_ACT_OPTIONS);
        let mut parms = [0; TC_GEN + 4];
        parms[..TC_GEN].copy_from_slice(&tc_gen(TC_ACT_PIPE));
        parms[TC_GEN..].copy_from_slice(&v_action.to_ne_bytes());
        self.attr(PARMS, &parms);
        if let Some((tpid, vid)) = tag {
            self.attr(TCA_VLAN_PUSH_VLAN_ID, &vid.get().to_ne_bytes());
            self.attr(TCA_VLAN_PUSH_VLAN_PROTOCOL, &tpid.ethertype().to_be_bytes());
            if v_action == TCA_VLAN_ACT_PUSH {
                self.attr(TCA_VLAN_PUSH_VLAN_PRIORITY, &[0]);
            }
        }
        self.end_nest(options);
    }
}

fn tc_gen(control: u32) -> [u8; TC_GEN] {
    let mut parms = [0; TC_GEN];
    parms[8..12].copy_from_slice(&control.to_ne_bytes());
    parms
}

/// The action that stands in one place of the list.
pub(super) fn read_action(action: &[u8]) -> Option<Action> {
    let kind = find(action, TCA_ACT_KIND)?;
    let options = find(action, TCA_ACT_OPTIONS)?;
    let parms = find(options, PARMS)?;
    let control = u32_at(parms, 8)?;
    match kind.split(|byte| *byte == 0).next()? {
        b"gact" => match control {
            TC_ACT_OK => Some(Action::Pass),
            TC_ACT_SHOT => Some(Action::Drop),
            TC_ACT_TRAP => Some(Action::Trap),
            goto if goto & !TC_ACT_EXT_VAL_MASK == TC_ACT_GOTO_CHAIN => {
                ChainId::new(goto & TC_ACT_EXT_VAL_MASK).map(Action::Goto)
            }
            _ => None,
        },
        b"mirred" => {
            let to = Ifindex::new(u32_at(parms, TC_GEN + 4)?)?;
            match (control, u32_at(parms, TC_GEN)?) {
                (TC_ACT_PIPE, TCA_EGRESS_MIRROR) => Some(Action::Mirror(to)),
                (TC_ACT_STOLEN, TCA_EGRESS_REDIR) => Some(Action::Redirect(to)),
                _ => None,
            }
        }
        b"vlan" => {
            if control != TC_ACT_PIPE {
                return None;
            }
            let priority = find(options, TCA_VLAN_PUSH_VLAN_PRIORITY);
            match u32_at(parms, TC_GEN)? {
                TCA_VLAN_ACT_POP => Some(Action::VlanPop),
                TCA_VLAN_ACT_PUSH if matches!(priority, None | Some([0])) => {
                    read_tag(options).map(|(tpid, vid)| Action::VlanPush { tpid, vid })
                }
                TCA_VLAN_ACT_MODIFY if priority.is_none() => {
                    read_tag(options).map(|(tpid, vid)| Action::VlanModify { tpid, vid })
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn read_tag(options: &[u8]) -> Option<(VlanTpid, VlanId)> {
    let vid = VlanId::new(u16_at(find(options, TCA_VLAN_PUSH_VLAN_ID)?, 0)?)?;
    let tpid = u16_at(find(options, TCA_VLAN_PUSH_VLAN_PROTOCOL)?, 0)?;
    let tpid = VlanTpid::from_ethertype(u16::from_be_bytes(tpid.to_ne_bytes()))?;
    Some((tpid, vid))
}
