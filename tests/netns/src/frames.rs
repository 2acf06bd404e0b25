//! Frames as bytes, each with a number by which it is known again wherever it comes out.
//!
//! In: a frame as flower keys see it, and its number. Out: what stands on the wire. Checksums are
//! not made: nothing between two ends looks at them.

use tc_flows::{Body, Fragment, Frame, Layer4};

/// What marks a frame as one of a test's, before its number.
const MARK: [u8; 4] = *b"walk";

/// The frame as bytes, ending in its number.
pub fn bytes(frame: &Frame, number: u32) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(frame.dst.0);
    out.extend(frame.src.0);
    for tag in &frame.tags {
        out.extend(tag.tpid.ethertype().to_be_bytes());
        out.extend((u16::from(tag.pcp) << 13 | tag.vid.get()).to_be_bytes());
    }
    out.extend(frame.ethertype.to_be_bytes());
    match frame.body {
        Body::Opaque => {}
        Body::Ipv4 { src, dst, tos, ttl, layer4, fragment } => {
            let offset = match fragment {
                Fragment::No => [0, 0],
                Fragment::First => [0x20, 0],
                Fragment::Later => [0x20, 8],
            };
            out.extend([0x45, tos, 0, 60, 0, 0, offset[0], offset[1]]);
            out.extend([ttl, layer4.proto(true), 0, 0]);
            out.extend(src.octets());
            out.extend(dst.octets());
            push_layer4(layer4, &mut out);
        }
        Body::Ipv6 { src, dst, tos, ttl, layer4, fragment } => {
            let proto = layer4.proto(false);
            let next = if fragment == Fragment::No { proto } else { 44 };
            out.extend([0x60 | tos >> 4, tos << 4, 0, 0, 0, 48, next, ttl]);
            out.extend(src.octets());
            out.extend(dst.octets());
            match fragment {
                Fragment::No => {}
                Fragment::First => out.extend([proto, 0, 0, 1, 0, 0, 0, 9]),
                Fragment::Later => out.extend([proto, 0, 0, 0x41, 0, 0, 0, 9]),
            }
            push_layer4(layer4, &mut out);
        }
        Body::Arp { op, sha, sip, tha, tip } => {
            out.extend([0, 1, 8, 0, 6, 4, 0, op]);
            out.extend(sha.0);
            out.extend(sip.octets());
            out.extend(tha.0);
            out.extend(tip.octets());
        }
        Body::Mpls(stack) => {
            for entry in stack.entries() {
                out.extend(entry.to_be_bytes());
            }
        }
        Body::Pppoe { session, proto } => {
            out.extend([0x11, 0]);
            out.extend(session.to_be_bytes());
            out.extend([0, 40]);
            out.extend(proto.to_be_bytes());
        }
        Body::Cfm { level, opcode } => out.extend([level << 5, opcode, 0, 0]),
    }
    out.resize(out.len() + 40, 0);
    out.extend(MARK);
    out.extend(number.to_be_bytes());
    out
}

fn push_layer4(layer4: Layer4, out: &mut Vec<u8>) {
    match layer4 {
        Layer4::Udp { src, dst } | Layer4::Sctp { src, dst } => {
            out.extend(src.to_be_bytes());
            out.extend(dst.to_be_bytes());
            out.extend([0, 20, 0, 0, 0, 0, 0, 0]);
        }
        Layer4::Tcp { src, dst, flags } => {
            out.extend(src.to_be_bytes());
            out.extend(dst.to_be_bytes());
            out.extend([0; 8]);
            out.extend((0x5000 | flags).to_be_bytes());
            out.extend([0; 6]);
        }
        Layer4::Icmp { kind, code } => out.extend([kind, code, 0, 0, 0, 0, 0, 0]),
        Layer4::Esp { spi } => out.extend(spi.to_be_bytes()),
        Layer4::Ah { spi } => {
            out.extend([59, 4, 0, 0]);
            out.extend(spi.to_be_bytes());
        }
        Layer4::L2tpv3 { session } => out.extend(session.to_be_bytes()),
        Layer4::Other(_) => {}
    }
}

/// The number of a frame that [`bytes`] made.
pub fn number(bytes: &[u8]) -> Option<u32> {
    let (rest, number) = bytes.split_last_chunk()?;
    rest.ends_with(&MARK).then(|| u32::from_be_bytes(*number))
}
