"""Many processes: the supervisor behind `pysqlx-run`, its workers, and the coordinator that holds their budget."""
