use aya::TestRun as _;
use palisade::kernel::*;
fn main() -> anyhow::Result<()> {
    let pins = PinDir::open(std::path::Path::new(&std::env::args().nth(1).unwrap()))?;
    let mut kernel = Kernel::open(pins, Sizes::default(), Settings::default(), AttachMode::Auto)?;
    println!("epoch {}", kernel.epoch());
    let frame = vec![0u8; 64];
    for name in ["empty", "from_pod", "to_pod"] {
        let p = kernel.program_mut(name)?;
        let info = p.info()?;
        let mut best = u32::MAX;
        for _ in 0..7 {
            let r = p.test_run(aya::programs::TestRunOptions {
                data_in: Some(&frame),
                repeat: 1000000,
                ..Default::default()
            })?;
            best = best.min(r.duration.as_nanos() as u32);
        }
        println!("{name}: insns {:?} {best} ns", info.verified_instruction_count());
    }
    Ok(())
}
