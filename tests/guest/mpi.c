/*
 * What the tests and the bench run under MPI, compiled with Open MPI and with MPICH.
 *
 *   mpi              every rank takes part in a sum, in a ring and in a gathering of host names; rank 0 tells the result
 *   mpi pingpong N   ranks 0 and 1 exchange N messages of 8 bytes, then N of 1 MiB; rank 0 tells the nanoseconds of each, one way
 *
 * With MPI_WITHOUT_FINALIZE in the environment the first ends without MPI_Finalize, in which MPICH 4.0 over UCX and TCP hangs now and
 * then, without any container too: a rank waits for an answer of another that is further on and no longer looks.
 */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int compare(const void *left, const void *right)
{
    double difference = *(const double *) left - *(const double *) right;
    return (difference > 0) - (difference < 0);
}

/* The median time of a message in one direction, in nanoseconds. */
static double pingpong(int rank, int size, int rounds)
{
    char *buffer = calloc(1, size);
    double *times = calloc(rounds, sizeof *times);
    for (int round = -100; round < rounds; round++) {
        double start = MPI_Wtime();
        if (rank == 0) {
            buffer[0] = (char) round;
            MPI_Send(buffer, size, MPI_CHAR, 1, 0, MPI_COMM_WORLD);
            MPI_Recv(buffer, size, MPI_CHAR, 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            if (buffer[0] != (char) (round + 1))
                MPI_Abort(MPI_COMM_WORLD, 9);
        } else if (rank == 1) {
            MPI_Recv(buffer, size, MPI_CHAR, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
            buffer[0]++;
            MPI_Send(buffer, size, MPI_CHAR, 0, 0, MPI_COMM_WORLD);
        }
        if (round >= 0)
            times[round] = (MPI_Wtime() - start) * 1e9 / 2;
    }
    qsort(times, rounds, sizeof *times, compare);
    double median = times[rounds / 2];
    free(buffer);
    free(times);
    return median;
}

int main(int count, char **words)
{
    int rank, size, sum, token = 0, length;
    char name[MPI_MAX_PROCESSOR_NAME] = "", *names;
    MPI_Init(&count, &words);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (count > 2 && !strcmp(words[1], "pingpong")) {
        int rounds = atoi(words[2]);
        double small = pingpong(rank, 8, rounds), large = pingpong(rank, 1 << 20, rounds);
        if (rank == 0)
            printf("%.0f %.0f\n", small, large);
        MPI_Finalize();
        return 0;
    }
    int mine = rank + 1;
    MPI_Allreduce(&mine, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    /* Once around: each adds its number. */
    if (rank == 0) {
        MPI_Send(&token, 1, MPI_INT, (rank + 1) % size, 1, MPI_COMM_WORLD);
        MPI_Recv(&token, 1, MPI_INT, size - 1, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    } else {
        MPI_Recv(&token, 1, MPI_INT, rank - 1, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
        token += rank;
        MPI_Send(&token, 1, MPI_INT, (rank + 1) % size, 1, MPI_COMM_WORLD);
    }
    MPI_Get_processor_name(name, &length);
    names = calloc(size, sizeof name);
    MPI_Gather(name, sizeof name, MPI_CHAR, names, sizeof name, MPI_CHAR, 0, MPI_COMM_WORLD);
    if (rank == 0) {
        printf("size %d sum %d ring %d hosts", size, sum, token);
        for (int at = 0; at < size; at++)
            printf(" %s", names + at * sizeof name);
        printf("\n");
    }
    if (getenv("MPI_WITHOUT_FINALIZE")) {
        fflush(stdout);
        MPI_Barrier(MPI_COMM_WORLD);
        _exit(0);
    }
    MPI_Finalize();
    return 0;
}
