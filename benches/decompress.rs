//! Unpacks kernels: the one inside the program, and the payload of a bzImage.
//!
//! `cargo bench --bench decompress`, after `make build`.
use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use hull::boot::{self, Via};
use hull::memory::backing;
use hull::memory::image::Image;

fn unpack(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("unpack");
    group.sample_size(20);
    match hull::guest::embedded() {
        None => eprintln!("hull carries no guest: run `make build` first"),
        Some(guest) => {
            for (name, part) in [("vmlinux", guest.vmlinux), ("initramfs", guest.initramfs)] {
                let mut buffer = vec![0; part.len()];
                group.throughput(Throughput::Bytes(part.len() as u64));
                group.bench_function(format!("{name} into a buffer"), |bencher| {
                    bencher.iter(|| part.unpack_into(black_box(&mut buffer)));
                });
            }
        }
    }
    group.finish();
}

fn place(criterion: &mut Criterion) {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest");
    let file = |name| Image::file(std::fs::File::open(guest.join(name)).ok()?).ok();
    let inside = hull::guest::embedded().map(|guest| Image::Packed(guest.vmlinux));
    let kernels = [
        ("the packed kernel", inside),
        ("vmlinux", file("vmlinux")),
        ("bzImage", file("bzImage")),
    ];
    let mut group = criterion.benchmark_group("place in fresh guest memory");
    group.sample_size(20);
    for (name, kernel) in kernels {
        let Some(kernel) = kernel else {
            eprintln!("no {name}: run `make build` first");
            continue;
        };
        group.bench_function(name, |bencher| {
            bencher.iter_with_large_drop(|| {
                let memory = backing::allocate(128 << 20).expect("memory");
                boot::place(&memory, &kernel, Via::Auto, &[]).expect("placed");
                memory
            });
        });
    }
    group.finish();
}

criterion_group!(benches, unpack, place);
criterion_main!(benches);
