//! Chains with templates, qdiscs with shared blocks, policers that rules share: what stands around
//! the rules of a hook.
//!
//! In go places and values, out comes what the kernel said. Nothing here is part of the
//! [`crate::Kernel`] trait: rules need none of it. What is not ours is left alone: a chain goes
//! only while it is empty, a qdisc only by the proof of having made it.

use super::{Asked, NetlinkKernel};
use crate::action::{Control, Police, PoliceIndex};
use crate::ident::{BlockId, ChainId, Hook, Ifindex};
use crate::kernel::{Error, Kernel, Result};
use crate::key::Match;
use crate::rule::Offload;
use crate::wire::{Reply, Writer};

/// A chain of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its number.
    pub id: ChainId,
    /// Which keys its rules may have.
    pub template: Template,
}

/// Which keys the rules of a chain may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Template {
    /// Any.
    None,
    /// Those of this match, in the bits of its masks; its values do not count.
    Keys(Match),
    /// A template that this crate has no word for.
    Unreadable,
}

/// Which kind of qdisc has the hooks of an interface, and which blocks they are bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookQdisc {
    /// `ingress`: the ingress hook only.
    Ingress {
        /// The block of its ingress hook, where it shares one.
        block: Option<BlockId>,
    },
    /// `clsact`: both hooks.
    Clsact {
        /// The block of its ingress hook, where it shares one.
        ingress: Option<BlockId>,
        /// The block of its egress hook, where it shares one.
        egress: Option<BlockId>,
    },
}

/// The proof of having made a qdisc.
#[derive(Debug, PartialEq, Eq)]
pub struct OwnQdisc(Ifindex);

impl NetlinkKernel {
    /// Makes a chain, with a template where one is given: from then on the chain holds only rules
    /// whose keys are within it, and hardware can be laid out for them. Such a chain stays when
    /// its last rule goes. (The kernel reads a template's masks only.)
    ///
    /// # Errors
    /// Where the chain is there already, the kernel does not take the template, or does not answer.
    pub fn add_chain(
        &mut self,
        hook: Hook,
        chain: ChainId,
        template: Option<&Match>,
    ) -> Result<()> {
        self.change("add chain", |writer, seq| writer.add_chain(hook, chain, template, seq))
    }

    /// Takes away a chain in which no rule stands, whoever's. Whether it was done: the kernel
    /// would take the rules with it, so a chain with rules is left as it is.
    ///
    /// # Errors
    /// Where there is no such chain, or the kernel refuses or does not answer.
    pub fn delete_chain(&mut self, hook: Hook, chain: ChainId) -> Result<bool> {
        let dump = self.dump(hook)?;
        let own = dump.own.iter().any(|own| own.rule.chain() == chain);
        let unreadable = dump.unreadable_own.iter().any(|(at, _)| at.chain == chain);
        let foreign = dump.foreign.iter().any(|foreign| foreign.chain == chain.get());
        if own || unreadable || foreign {
            return Ok(false);
        }
        self.change("delete chain", |writer, seq| writer.delete_chain(hook, chain, seq))?;
        Ok(true)
    }

    /// Every chain of the hook.
    ///
    /// # Errors
    /// Where the kernel refuses or does not answer.
    pub fn chains(&mut self, hook: Hook) -> Result<Vec<Chain>> {
        let seq = self.take_seqs(1);
        self.out.clear();
        Writer::new(&mut self.out).dump_chains(hook, seq);
        let mut chains = Vec::new();
        self.ask_for_all("dump chains", seq, |message| {
            let Some(chain) = message.chain() else { return false };
            let template = match chain.template {
                None => Template::None,
                Some(None) => Template::Unreadable,
                Some(Some(keys)) => Template::Keys(keys),
            };
            chains.push(Chain { id: chain.chain, template });
            true
        })?;
        Ok(chains)
    }

    /// Makes an interface's ingress or clsact qdisc, bound to these blocks.
    ///
    /// # Errors
    /// Where the interface has either of the two already (EEXIST), or the kernel refuses or does
    /// not answer.
    pub fn add_qdisc(&mut self, ifindex: Ifindex, qdisc: HookQdisc) -> Result<OwnQdisc> {
        let (kind, ingress, egress) = match qdisc {
            HookQdisc::Ingress { block } => ("ingress", block, None),
            HookQdisc::Clsact { ingress, egress } => ("clsact", ingress, egress),
        };
        self.change("add qdisc", |writer, seq| {
            writer.add_qdisc(ifindex, kind, ingress, egress, seq);
        })?;
        Ok(OwnQdisc(ifindex))
    }

    /// Takes away a qdisc that [`NetlinkKernel::add_qdisc`] made, and with it all rules of its
    /// hooks but those of shared blocks, which go with their last qdisc.
    ///
    /// # Errors
    /// Where it is gone already, or the kernel refuses or does not answer.
    pub fn delete_qdisc(&mut self, qdisc: OwnQdisc) -> Result<()> {
        self.change("delete qdisc", |writer, seq| writer.delete_qdisc(qdisc.0, seq))
    }

    /// Makes the policer that rules name by this index ([`crate::Action::SharedPolice`]), or
    /// changes it for all of them. What exceeds is dropped, what conforms goes on with the rule's
    /// next action, whatever `police` says of them. `offload` is that of the rules: the kernel
    /// wants both alike.
    ///
    /// # Errors
    /// Where the kernel refuses or does not answer.
    pub fn set_shared_police(
        &mut self,
        index: PoliceIndex,
        police: Police,
        offload: Offload,
    ) -> Result<()> {
        let police = Police { exceed: Control::Drop, conform: Control::Pipe, ..police };
        self.change("set police", |writer, seq| writer.set_police(index, &police, offload, seq))
    }

    /// Takes away a policer that rules share.
    ///
    /// # Errors
    /// Where a rule uses it (EPERM), where it is not there, or the kernel refuses or does not
    /// answer.
    pub fn delete_shared_police(&mut self, index: PoliceIndex) -> Result<()> {
        self.change("delete police", |writer, seq| writer.delete_police(index, seq))
    }

    /// Sends one request and waits for what the kernel says of it.
    fn change(
        &mut self,
        request: &'static str,
        write: impl FnOnce(&mut Writer<'_>, u32),
    ) -> Result<()> {
        let seq = self.take_seqs(1);
        self.out.clear();
        write(&mut Writer::new(&mut self.out), seq);
        self.ask(request, seq, |message| match message.read() {
            Reply::Ack { errno: 0, .. } => Ok(Asked::Answered),
            Reply::Ack { errno, message } => Err(Error::Refused { request, errno, message }),
            _ => Ok(Asked::More),
        })
    }
}
