"""`python -m ddpm_deploy NAME ...`: the same as `ddpm-deploy NAME ...`."""

from ddpm_deploy.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
