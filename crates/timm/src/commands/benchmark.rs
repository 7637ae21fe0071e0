#[derive(clap::Args, Debug)]
pub struct Options {}
pub fn run(_: Options) -> anyhow::Result<()> {
    anyhow::bail!("being written")
}
