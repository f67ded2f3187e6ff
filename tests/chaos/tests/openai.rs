//! The real `openai` Python package against the shipped binary: plain, streaming, usage, wrong key, exhausted budget,
//! rate limit and retry. `cargo xtask setup` installs the package; `cargo xtask test` does so by itself.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use tests_chaos::{money, system::System};

fn secret(system: &System, tenant: &str, plan: &str) -> Result<String> {
    system.operator(&["tenant", "create", tenant, "--plan", plan])?;
    let key = system.operator(&["key", "create", tenant])?;
    Ok(key["secret"].as_str().context("find the key's secret")?.to_owned())
}

#[tokio::test]
async fn the_official_python_client_works_unchanged() -> Result<()> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let python = target.join("tools/openai-venv/bin/python");
    ensure!(python.exists(), "{} is missing: run `cargo xtask setup`", python.display());
    let folder = tempfile::tempdir()?;
    let system = System::start(folder.path(), &[]).await?;
    let (ample, broke, slow) =
        (secret(&system, "ample", "enterprise")?, secret(&system, "broke", "pro")?, secret(&system, "slow", "free")?);
    system.operator(&["tenant", "set-budget", "broke", "--period", "day", "--limit", "0.000000001"])?;

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/openai_client.py");
    let base_url = format!("http://{}/v1", system.server.http);
    let client = move || {
        Command::new(python)
            .arg(script)
            .env_clear()
            .env("BASE_URL", base_url)
            .env("KEY_AMPLE", ample)
            .env("KEY_BROKE", broke)
            .env("KEY_SLOW", slow)
            .output()
    };
    let output = tokio::task::spawn_blocking(client).await?.context("run the Python client")?;
    eprint!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "the Python client ended with {}", output.status);

    money::all_settled(&system).await?;
    let account = money::books_agree(&system).await?;
    ensure!(account.settled > 0 && account.expired == 0, "{account:?}");
    Ok(())
}
