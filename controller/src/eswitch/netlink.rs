//! What all our netlink conversations share: attributes, answers, refusals, and the thread on which
//! connections live.
//!
//! In: answer streams of rtnetlink, genetlink and netlink-proto. Out: the messages of an answer, or
//! the kernel's refusal with its errno and words. Malformed input ends an answer early; it never
//! panics.

use std::{
    fmt,
    future::Future,
    io,
    pin::{Pin, pin},
    time::Duration,
};

use futures_util::{Stream, StreamExt};
use genetlink::{GenetlinkError, GenetlinkHandle};
use netlink_packet_core::{
    DoneMessage, Emitable, ErrorMessage, NetlinkMessage, NetlinkPayload, ParseableParametrized,
};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use nix::errno::Errno;

use super::{EswitchError, KernelRefusal};

/// How long an answer may take. A driver that changes its mode or resets holds its locks for
/// seconds; past this the outcome is unknown and the caller looks again.
const PATIENCE: Duration = Duration::from_secs(15);

/// `NLM_F_MULTI`, `NLM_F_DUMP_INTR`, `NLM_F_CAPPED` and `NLM_F_ACK_TLVS` of `include/uapi/linux/netlink.h`.
const MULTIPART: u16 = 0x02;
const DUMP_INTERRUPTED: u16 = 0x10;
const CAPPED: u16 = 0x100;
const ACK_TLVS: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG` of `include/uapi/linux/netlink.h`.
const ERROR_TEXT: u16 = 1;
/// `sizeof(struct nlmsghdr)`.
const MESSAGE_HEADER: usize = 16;
/// `NLA_F_NESTED | NLA_F_NET_BYTEORDER`, which are no part of an attribute's type.
const ATTRIBUTE_FLAGS: u16 = 0xc000;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `NLA_HDRLEN`.
const ATTRIBUTE_HEADER: usize = 4;

/// The attributes in `bytes`, as type and value; ends at the first malformed one.
pub(crate) fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes { rest: bytes }
}

/// See [`attributes`].
pub(crate) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::from(u16_at(self.rest, 0)?);
        let kind = u16_at(self.rest, 2)? & !ATTRIBUTE_FLAGS;
        let value = self.rest.get(ATTRIBUTE_HEADER..length)?;
        self.rest = self.rest.get(aligned(length)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// Appends an attribute.
pub(crate) fn put(buffer: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; ATTRIBUTE_HEADER]);
    buffer.extend_from_slice(value);
    finish(buffer, start, kind);
}

/// Appends an attribute of NUL-terminated text.
pub(crate) fn put_text(buffer: &mut Vec<u8>, kind: u16, text: &str) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; ATTRIBUTE_HEADER]);
    buffer.extend_from_slice(text.as_bytes());
    buffer.push(0);
    finish(buffer, start, kind);
}

/// Appends a nested attribute with the attributes that `content` appends.
pub(crate) fn put_nested(buffer: &mut Vec<u8>, kind: u16, content: impl FnOnce(&mut Vec<u8>)) {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; ATTRIBUTE_HEADER]);
    content(buffer);
    finish(buffer, start, kind | NESTED);
}

/// Writes the header of the attribute that begins at `start`, and pads it. Our requests are far
/// below the 64 KB that a length can say.
fn finish(buffer: &mut Vec<u8>, start: usize, kind: u16) {
    let length = u16::try_from(buffer.len() - start).unwrap_or(u16::MAX);
    buffer[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    buffer[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
    buffer.resize(start + aligned(buffer.len() - start), 0);
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// The 16-bit number at `offset`, in the host's byte order.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset.checked_add(2)?)?.try_into().ok()?))
}

/// The 32-bit number at `offset`, in the host's byte order.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset.checked_add(4)?)?.try_into().ok()?))
}

/// The 64-bit number at `offset`, in the host's byte order.
pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(offset..offset.checked_add(8)?)?.try_into().ok()?))
}

/// Text up to the first NUL; bytes that are no UTF-8 are replaced.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// The answer to one request.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    /// Its messages.
    pub(crate) messages: Vec<T>,
    /// Whether what was dumped changed meanwhile, so that the answer may be inconsistent.
    pub(crate) interrupted: bool,
}

/// Gathers an answer. The connection must forward acknowledgements and ends of dumps: an answer
/// that ends with neither is that of a dead connection.
///
/// # Errors
/// The kernel's refusal; `EPIPE` where the connection ended; `ETIMEDOUT` where no answer came.
pub(crate) async fn answer<T>(
    what: &str,
    replies: impl Stream<Item = NetlinkMessage<T>>,
) -> Result<Answer<T>, KernelRefusal> {
    answer_within(PATIENCE, what, replies).await
}

async fn answer_within<T>(
    patience: Duration,
    what: &str,
    replies: impl Stream<Item = NetlinkMessage<T>>,
) -> Result<Answer<T>, KernelRefusal> {
    tokio::time::timeout(patience, gather(what, pin!(replies)))
        .await
        .unwrap_or_else(|_| Err(lost(what, Errno::ETIMEDOUT, "no answer; the outcome is unknown")))
}

async fn gather<T>(
    what: &str,
    mut replies: Pin<&mut impl Stream<Item = NetlinkMessage<T>>>,
) -> Result<Answer<T>, KernelRefusal> {
    let mut answer = Answer { messages: Vec::new(), interrupted: false };
    let mut complete = false;
    while let Some(message) = replies.next().await {
        answer.interrupted |= message.header.flags & DUMP_INTERRUPTED != 0;
        match message.payload {
            NetlinkPayload::InnerMessage(inner) => {
                answer.messages.push(inner);
                complete = message.header.flags & MULTIPART == 0;
            }
            NetlinkPayload::Error(error) => match refusal(what, message.header.flags, &error) {
                Some(refusal) => return Err(refusal),
                None => complete = true,
            },
            NetlinkPayload::Done(done) => match dump_refusal(what, &done) {
                Some(refusal) => return Err(refusal),
                None => complete = true,
            },
            NetlinkPayload::Overrun(_) => {
                return Err(lost(
                    what,
                    Errno::ENOBUFS,
                    "an answer was lost; the outcome is unknown",
                ));
            }
            _ => {}
        }
    }
    if complete {
        Ok(answer)
    } else {
        Err(lost(what, Errno::EPIPE, "the netlink connection ended; the outcome is unknown"))
    }
}

/// A refusal that is not the kernel's: the answer did not arrive.
pub(crate) fn lost(what: &str, errno: Errno, message: &str) -> KernelRefusal {
    KernelRefusal { errno: errno as i32, message: message.into(), what: what.into() }
}

/// The refusal in an `NLMSG_ERROR`; `None` where it is an acknowledgement.
fn refusal(what: &str, flags: u16, error: &ErrorMessage) -> Option<KernelRefusal> {
    let errno = error.code?.get().saturating_abs();
    Some(KernelRefusal {
        errno,
        message: extended_ack(flags, &error.header).unwrap_or_else(|| errno_text(errno)),
        what: what.into(),
    })
}

/// The refusal at the end of a dump; `None` where the dump went well.
fn dump_refusal(what: &str, done: &DoneMessage) -> Option<KernelRefusal> {
    let errno = done.code.checked_neg().filter(|errno| *errno > 0)?;
    Some(KernelRefusal {
        errno,
        message: error_text(&done.extended_ack).unwrap_or_else(|| errno_text(errno)),
        what: what.into(),
    })
}

/// The kernel's words in an `NLMSG_ERROR`, whose payload after the code is `payload`: the request,
/// or only its header where the message is capped, then attributes.
fn extended_ack(flags: u16, payload: &[u8]) -> Option<String> {
    if flags & ACK_TLVS == 0 {
        return None;
    }
    let request = match flags & CAPPED {
        0 => aligned(u32_at(payload, 0)? as usize),
        _ => MESSAGE_HEADER,
    };
    error_text(payload.get(request..)?)
}

fn error_text(bytes: &[u8]) -> Option<String> {
    attributes(bytes)
        .find(|(kind, _)| *kind == ERROR_TEXT)
        .map(|(_, value)| text(value))
        .filter(|words| !words.is_empty())
}

/// The error number in words.
pub(crate) fn errno_text(errno: i32) -> String {
    Errno::from_raw(errno).desc().to_owned()
}

/// Flags of `include/uapi/linux/netlink.h`.
pub(crate) mod flag {
    /// `NLM_F_REQUEST`.
    pub(crate) const REQUEST: u16 = 0x01;
    /// `NLM_F_ACK`.
    pub(crate) const ACK: u16 = 0x04;
    /// `NLM_F_DUMP`.
    pub(crate) const DUMP: u16 = 0x300;
}

/// Sends a generic netlink request and gathers its answer.
pub(crate) async fn generic_request<M>(
    handle: &GenetlinkHandle,
    what: &str,
    message: M,
    flags: u16,
) -> Result<Answer<M>, KernelRefusal>
where
    M: GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + fmt::Debug,
{
    generic_request_within(PATIENCE, handle, what, message, flags).await
}

/// As [`generic_request`], for what a driver takes longer for.
pub(crate) async fn generic_request_within<M>(
    patience: Duration,
    handle: &GenetlinkHandle,
    what: &str,
    message: M,
    flags: u16,
) -> Result<Answer<M>, KernelRefusal>
where
    M: GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + fmt::Debug,
{
    let mut request = NetlinkMessage::from(GenlMessage::from_payload(message));
    request.header.flags = flags;
    let replies = handle
        .clone()
        .request(request)
        .await
        .map_err(|error| generic_refusal(what, error))?
        .filter_map(|reply| std::future::ready(reply.ok()));
    let answer = answer_within(patience, what, replies).await?;
    let messages = answer.messages.into_iter().map(|message| message.payload).collect();
    Ok(Answer { messages, interrupted: answer.interrupted })
}

/// A failure of the genetlink crate as a refusal.
pub(crate) fn generic_refusal(what: &str, error: GenetlinkError) -> KernelRefusal {
    match error {
        GenetlinkError::NetlinkError(error) => {
            let errno = error.raw_os_error().unwrap_or(Errno::EIO as i32);
            KernelRefusal { errno, message: errno_text(errno), what: what.into() }
        }
        GenetlinkError::ProtocolError(error) => lost(what, Errno::EPIPE, &error.to_string()),
        other => lost(what, Errno::EPROTO, &other.to_string()),
    }
}

/// Runs what `open` gives on a thread of its own, and returns what `open` gives besides.
///
/// The kernel does the work of a netlink request inside the sender's system call, under locks that
/// a driver may hold for seconds: such a call must not stop the daemon's other tasks. The thread is
/// in the caller's network namespace, and ends with the future.
///
/// # Errors
/// Those of `open`, and those of starting the thread.
pub(crate) fn on_own_thread<Made, Work>(
    name: &'static str,
    open: impl FnOnce() -> Result<(Work, Made), EswitchError> + Send + 'static,
) -> Result<Made, EswitchError>
where
    Work: Future<Output = ()>,
    Made: Send + 'static,
{
    let failed = |source| EswitchError::Socket { what: "cannot start a netlink thread", source };
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = match runtime {
                Ok(runtime) => runtime,
                Err(error) => {
                    let _ = tell.send(Err(failed(error)));
                    return;
                }
            };
            let _entered = runtime.enter();
            match open() {
                Ok((work, made)) => {
                    let _ = tell.send(Ok(made));
                    drop(tell);
                    runtime.block_on(work);
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                }
            }
        })
        .map_err(failed)?;
    told.recv().unwrap_or_else(|_| Err(failed(io::Error::other("it ended at once"))))
}

/// The bytes of a message recorded from a kernel, from hexadecimal text.
#[cfg(test)]
pub(crate) fn recorded(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text
        .chars()
        .filter_map(|digit| digit.to_digit(16))
        .filter_map(|digit| u8::try_from(digit).ok())
        .collect();
    digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_read_back_as_they_were_put() {
        let mut bytes = Vec::new();
        put_text(&mut bytes, 1, "pci");
        put(&mut bytes, 2, &[9]);
        put_nested(&mut bytes, 3, |nest| put(nest, 4, &7_u32.to_ne_bytes()));
        let read: Vec<(u16, &[u8])> = attributes(&bytes).collect();
        assert_eq!(read[0], (1, &b"pci\0"[..]));
        assert_eq!(read[1], (2, &[9][..]));
        assert_eq!(read[2].0, 3);
        let nested: Vec<_> = attributes(read[2].1).map(|(k, v)| (k, u32_at(v, 0))).collect();
        assert_eq!(nested, [(4, Some(7))]);
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn the_kernels_words_are_found_behind_a_capped_and_behind_a_whole_request() {
        let mut words = Vec::new();
        put_text(&mut words, ERROR_TEXT, "Device is gone");
        for (flags, request) in [(ACK_TLVS | CAPPED, 64_u32), (ACK_TLVS, 21)] {
            let echoed = if flags & CAPPED == 0 { 24 } else { 16 };
            let mut payload = request.to_ne_bytes().to_vec();
            payload.resize(echoed, 0);
            payload.extend_from_slice(&words);
            assert_eq!(extended_ack(flags, &payload).as_deref(), Some("Device is gone"));
            assert_eq!(extended_ack(flags & !ACK_TLVS, &payload), None);
        }
    }

    #[test]
    fn the_errno_of_a_real_refusal_is_kept_where_the_kernel_gives_no_words() {
        // Linux 7.3, RTM_SETLINK with IFLA_VF_LINK_STATE to igb, which has none.
        let payload = recorded(
            "3400000010000500731b036b000000000000000002000000000000000000000014001600100001000c000500\
             0100000002000000",
        );
        let mut error = ErrorMessage::default();
        error.code = std::num::NonZeroI32::new(-95);
        error.header = payload;
        assert_eq!(
            refusal("set the link state of VF 1", 0, &error),
            Some(KernelRefusal {
                errno: 95,
                message: "Operation not supported on transport endpoint".into(),
                what: "set the link state of VF 1".into(),
            })
        );
        error.code = None;
        assert_eq!(refusal("", 0, &error), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(
            flags: u16,
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let seen: usize = attributes(&bytes).map(|(_, value)| value.len() + 4).sum();
            prop_assert!(seen <= bytes.len());
            let _ = extended_ack(flags, &bytes);
        }
    }
}
