//! Images of allocators, as OTP 23 and as OTP 25 lay them out, on x86-64 and on arm64.

use proptest::prelude::*;

use super::*;
use crate::erts::executable::tests::{DATA, HEAP, Node};

/// Segments are here.
const SEGMENTS: u64 = HEAP + (1 << 20);

/// An array of allocators at [`HEAP`], with a pointer to it among the variables.
struct Image {
    node: Node,
    align_bits: u32,
    /// Bytes before the nodes of an instance.
    nodes_at: u64,
    limit: u64,
}

impl Image {
    fn new(align_bits: u32, nodes_at: u64, limit: u64, instances: u32) -> Self {
        let mut image = Self { node: Node::new(16 << 20), align_bits, nodes_at, limit };
        image.node.put_words(DATA + 0x1238, &[HEAP]);
        for index in 0..instances {
            image.instance(index, &[]);
        }
        image
    }

    fn heads(&self) -> u64 {
        u64::from(34 - self.align_bits)
    }

    fn at(&self, index: u32) -> u64 {
        let length = self.nodes_at + 32 * (30 + self.heads()) + 8 * 21;
        HEAP + u64::from(index) * length.next_multiple_of(64)
    }

    /// Writes instance `index`, which caches `cached`: number of the head, segment and size of each.
    fn instance(&mut self, index: u32, cached: &[(u64, u64, u64)]) {
        let at = self.at(index);
        let nodes = at + self.nodes_at;
        let heads = nodes + 32 * 30;
        self.node.put_words(at, &[u64::from(index) | 1 << 32, u64::from(index == 0)]);
        let free = self.heads() - 1;
        let rest = (cached.len() as u64..self.limit).map(|_| (free, 0, 0));
        let all: Vec<_> = cached.iter().copied().chain(rest).collect();
        for head in 0..self.heads() {
            let members =
                (0..).zip(&all).filter(|(_, node)| node.0 == head).map(|(number, node)| (nodes + 32 * number, *node));
            let mut ring = vec![(heads + 32 * head, (head, 0, 0))];
            ring.extend(members);
            for (position, &(address, (_, segment, size))) in ring.iter().enumerate() {
                let next = ring[(position + 1) % ring.len()].0;
                let previous = ring[(position + ring.len() - 1) % ring.len()].0;
                self.node.put_words(address, &[size, segment, next, previous]);
            }
        }
        let count = cached.len() as u64;
        let figures = [count, 7, 5, 3, 3 << 20, 4, 4 << 20, 9, 9 << 20, self.limit, 4_194_304, 20];
        let counters: Vec<u64> = (1..=9).map(|n| 1 | n << 32).collect();
        self.node.put_words(heads + 32 * self.heads(), &figures);
        self.node.put_words(heads + 32 * self.heads() + 96, &counters);
    }

    fn find(&self) -> Result<Mseg, MsegError> {
        find(&self.node.view, &self.node.memory)
    }
}

/// One segment of three pages, and one of 2 MiB.
fn cached(align_bits: u32) -> [(u64, u64, u64); 2] {
    [(0, SEGMENTS + 0x3000, 0x3000), (u64::from(22 - align_bits), HEAP + (2 << 20), 2 << 20)]
}

#[test]
fn reads_every_form() {
    for (align_bits, nodes_at, limit) in
        [(14, 64, 10), (18, 64, 10), (14, 72, 10), (18, 72, 30), (14, 64, 30), (14, 64, 2), (18, 64, 2)]
    {
        let mut image = Image::new(align_bits, nodes_at, limit, 3);
        image.instance(1, &cached(align_bits));
        let mseg = image.find().unwrap();
        assert!(mseg.defects.is_empty(), "{:?}", mseg.defects);
        assert_eq!(mseg.align_bits, Some(align_bits));
        let seen: Vec<_> = mseg.instances.iter().map(|instance| (instance.index, instance.cached.len())).collect();
        assert_eq!(seen, [(0, 0), (1, 2), (2, 0)]);
        let one = &mseg.instances[1];
        assert_eq!(one.cached, [SEGMENTS + 0x3000..SEGMENTS + 0x6000, HEAP + (2 << 20)..HEAP + (4 << 20)]);
        assert_eq!((one.cached_segments, one.cache_limit, one.cache_hits), (2, limit, 7));
        assert_eq!(one.segments, Figure { current: 3, max: 4, max_ever: 9 });
        assert_eq!((one.calls.alloc, one.calls.check_cache), (1_000_000_001, 1_000_000_009));
    }
}

#[test]
fn a_full_cache_tells_its_form() {
    for align_bits in [14, 18] {
        let mut image = Image::new(align_bits, 64, 10, 3);
        let segments: Vec<_> =
            (0..9).map(|n| (0, SEGMENTS + 0x3000 * n, 0x3000)).chain([cached(align_bits)[1]]).collect();
        image.instance(0, &segments);
        let mseg = image.find().unwrap();
        assert_eq!((mseg.align_bits, mseg.instances.len()), (Some(align_bits), 3));
        assert_eq!(mseg.instances[0].cached.len(), 10);
    }
}

#[test]
fn a_vm_without_cache_is_no_error() {
    let mseg = Image::new(14, 64, 0, 2).find().unwrap();
    assert_eq!((mseg.align_bits, mseg.instances.len(), mseg.defects.len()), (None, 2, 0));
}

#[test]
fn leaves_out_what_is_no_segment() {
    let mut image = Image::new(14, 64, 10, 1);
    image
        .instance(0, &[(0, SEGMENTS, 0x3000), (0, SEGMENTS + 0x2000, 0x3000), (0, HEAP + (16 << 20) - 0x1000, 0x2000)]);
    let mseg = image.find().unwrap();
    // What is not mapped any more, or not yet, is none of the first two, which share bytes.
    assert_eq!((mseg.instances[0].cached.len(), mseg.defects.len()), (1, 2), "{:?}", mseg.defects);
}

#[test]
fn one_that_contradicts_itself_does_not_hide_the_next() {
    let mut image = Image::new(14, 64, 10, 3);
    let nodes = image.at(1) + 64;
    image.node.put_words(nodes + 16, &[nodes]);
    let mseg = image.find().unwrap();
    let seen: Vec<_> = mseg.instances.iter().map(|instance| instance.index).collect();
    assert_eq!(seen, [0, 2]);
    assert!(matches!(mseg.defects.as_slice(), [MsegDefect::Implausible { index: 1, .. }]));
}

#[test]
fn nothing_is_found_where_nothing_is() {
    let node = Node::new(1 << 20);
    assert_eq!(find(&node.view, &node.memory).unwrap_err(), MsegError::NotFound { unread: 0 });
}

proptest! {
    #[test]
    fn any_damage_is_survived(damage: Vec<(bool, u16, u8)>) {
        let mut image = Image::new(14, 64, 10, 3);
        image.instance(1, &cached(14));
        image.node.damage(&damage);
        if let Ok(mseg) = image.find() {
            for instance in mseg.instances {
                prop_assert!(instance.cached.len() <= 30);
                prop_assert!(instance.cached.iter().all(|range| range.start < range.end));
            }
        }
    }
}
