from tbsn.cli import run

run()
