//! The cost of a snapshot in hull itself: reading and checking its state, mapping its memory, checking that.
//!
//! `cargo bench --bench restore`. `hull bench restore` measures the whole restore, from exec to the guest's answer.
use std::fs::File;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hull::memory::backing;
use hull::memory::pages::Pages;
use hull::snapshot::{self, Writer};
use vm_memory::{Bytes, GuestAddress};

const MEMORY: u64 = 128 << 20;
/// Approximately the bytes that a booted guest of hull has touched.
const TOUCHED: u64 = 20 << 20;
/// Approximately the bytes of a machine's state.
const STATE: usize = 64 << 10;

fn restore(criterion: &mut Criterion) {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let memory = backing::allocate(MEMORY).expect("memory");
    let page: Vec<u8> = (0..4096u32).map(|i| (i / 7) as u8).collect();
    for at in (0..TOUCHED).step_by(page.len()) {
        let written = memory.write_slice(&page, GuestAddress(at));
        written.expect("it is large enough");
    }
    let mut writer = Writer::create(folder.path(), false).expect("a writer");
    let pages = Pages::touched(&memory, File::open("/proc/self/pagemap").ok().as_ref());
    writer.memory(&memory, &pages, None).expect("its memory");
    writer.section(*b"NOTE", vec![7; STATE]);
    writer.commit().expect("a snapshot");

    let mut group = criterion.benchmark_group("snapshot");
    group.bench_function("read and check the state", |bencher| {
        bencher.iter(|| snapshot::open(folder.path()).expect("it is whole"));
    });
    let opened = snapshot::open(folder.path()).expect("it is whole");
    group.bench_function("map the memory", |bencher| {
        bencher.iter(|| backing::map_file(opened.memory()).expect("mapped"));
    });
    group.sample_size(20).throughput(Throughput::Bytes(TOUCHED));
    group.bench_function("check the memory", |bencher| {
        bencher.iter(|| opened.check_memory().expect("it is right"));
    });
    group.finish();
}

criterion_group!(benches, restore);
criterion_main!(benches);
